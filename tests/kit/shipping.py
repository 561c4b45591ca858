"""Which functions of the package can be reached from inside a trace, found by walking their source.

Blocks are the bodies of `with ...trace(...)`, `session`, `edit` and `generate`. From each the names that it calls are
followed: functions and classes through the module's imports, methods by their name in any class of the package (more
than can be reached is walked, never less).
"""

import ast
from dataclasses import dataclass, field
from pathlib import Path

OPENS = ("trace", "session", "edit", "generate")
PROCESSORS = {"PIL"}  # a server of vision models has what their processors need
ROOTS = ("run", "run_each")  # of every pattern: edits call them, one of them through a variable
# Names that torch's, nnsight's or Python's own objects have too, and that no block calls on ours.
NOT_OURS = {"trace", "session", "edit", "generate", "save", "to", "items", "values", "keys", "split", "load", "find"}
# What is called before a block opens: refusals, preparations, where it runs.
BEFORE = {"check", "prepared", "prompt", "prompts", "checked", "edited", "at", "but", "remotely", "backend_there"}
MADE_BEFORE = {"Pattern"}  # nothing makes one inside a block
# On NDIF an ordinary key's blocks see modules on the meta device: numbers and names are there, weights are not.
THERE = {"scaling", "scale", "head_dim", "num_heads"}
WEIGHTS = {"weight", "bias", "parameters", "named_parameters", "get_parameter", "buffers", "named_buffers"}
WEIGHTS |= {"get_buffer", "state_dict", "get_input_embeddings", "get_output_embeddings"}
# Rooms whose objects stand in no block: they hold weights, tables, files or a browser's page.
STAY = ("adapters", "arguments", "bridge", "checks", "command_line", "data", "files", "nano", "runs", "show", "workers")
HOLDS = ("Result", "Report", "Job", "Maps", "Look")  # how classes that hold or draw what came back are called


@dataclass
class Module:
    """One file: its functions and classes, and what it imports from the package."""

    name: str
    tree: ast.Module
    functions: dict[str, ast.FunctionDef] = field(default_factory=dict)
    classes: dict[str, ast.ClassDef] = field(default_factory=dict)
    imports: dict[str, tuple[str, str]] = field(default_factory=dict)


def read(root: Path) -> dict[str, Module]:
    """The package's modules by the names under which they are imported."""
    found = {}
    for folder, package in (
        ("nnsight_mmflow", "nnsight_mmflow"),
        ("adapters", "nnsight_mmflow.adapters"),
        ("patterns", "nnsight_mmflow.patterns"),
    ):
        for path in sorted((root / folder).rglob("*.py")):
            parts = path.relative_to(root / folder).with_suffix("").parts
            name = ".".join([package, *(part for part in parts if part != "__init__")])
            found[name] = module_of(name, path.read_text())
    return found


def module_of(name: str, text: str) -> Module:
    """A module of its source."""
    made = Module(name, ast.parse(text))
    for node in made.tree.body:
        if isinstance(node, ast.FunctionDef):
            made.functions[node.name] = node
        elif isinstance(node, ast.ClassDef):
            made.classes[node.name] = node
    typing = [node for node in made.tree.body if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)]
    unseen = {id(part) for node in typing for part in ast.walk(node)}  # annotations are postponed
    for node in ast.walk(made.tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.ImportFrom) and node.module and node.module.startswith("nnsight_mmflow"):
            for alias in node.names:
                made.imports[alias.asname or alias.name] = (node.module, alias.name)
    return made


def blocks(module: Module) -> list[ast.With]:
    """The bodies that travel."""
    return [
        node
        for node in ast.walk(module.tree)
        if isinstance(node, ast.With)
        and any(
            isinstance(part, ast.Call) and isinstance(part.func, ast.Attribute) and part.func.attr in OPENS
            for item in node.items
            for part in [item.context_expr]
        )
    ]


def reached(modules: dict[str, Module]) -> dict[tuple[str, str], ast.AST]:
    """(module, "function", "Class" or "Class.method") of all that a block can reach, with its source."""
    methods: dict[str, list[tuple[str, str, ast.FunctionDef]]] = {}
    for module in modules.values():
        stays = module.name.split(".")[1:2] and module.name.split(".")[1] in STAY
        for name, node in module.classes.items() if not stays else ():
            if name.endswith(HOLDS):
                continue
            for part in node.body:
                if isinstance(part, ast.FunctionDef):
                    methods.setdefault(part.name, []).append((module.name, f"{name}.{part.name}", part))
    for name in NOT_OURS | BEFORE:
        methods.pop(name, None)
    found: dict[tuple[str, str], ast.AST] = {}
    waiting: list[tuple[Module, ast.AST]] = [
        (module, statement) for module in modules.values() for block in blocks(module) for statement in block.body
    ]

    def reach(where: str, name: str, node: ast.AST) -> None:
        if (where, name) not in found:
            found[where, name] = node
            waiting.append((modules[where], node))

    for root in ROOTS:
        for where, name, method in methods.get(root, ()):
            reach(where, name, method)
    while waiting:
        module, node = waiting.pop()
        if isinstance(node, ast.ClassDef):  # its methods are reached by name, but for those that Python calls
            for part in node.body:
                if isinstance(part, ast.FunctionDef) and part.name.startswith("__") and node.name not in MADE_BEFORE:
                    reach(module.name, f"{node.name}.{part.name}", part)
            continue
        for part in ast.walk(node):
            if isinstance(part, ast.Name) and isinstance(part.ctx, ast.Load):
                where, name = module.imports.get(part.id, (module.name, part.id))
                if where in modules and name in modules[where].functions:
                    reach(where, name, modules[where].functions[name])
                elif where in modules and name in modules[where].classes:
                    reach(where, name, modules[where].classes[name])
            elif isinstance(part, ast.Attribute) and part.attr in methods:
                for where, name, method in methods[part.attr]:
                    reach(where, name, method)
    return found


def faults(modules: dict[str, Module], on_a_server: set[str]) -> list[str]:
    """What of it ships wrongly, in words."""
    wrong = []
    for (where, name), node in reached(modules).items():
        for decorator in getattr(node, "decorator_list", []):
            text = ast.unparse(decorator)
            if not text.startswith(("dataclass", "property")):
                wrong.append(f"{where}.{name}: @{text} is lost on a server")
        for part in () if isinstance(node, ast.ClassDef) else ast.walk(node):  # a class: its methods stand for it
            if isinstance(part, ast.Call) and ast.unparse(part.func) == "super" and not part.args:
                wrong.append(f"{where}.{name}: zero-argument super() breaks on a server")
            wrong += [f"{where}.{name}: {told}" for told in read_weights(part)]
            if isinstance(part, ast.Import | ast.ImportFrom):
                wrong += [f"{where}.{name}: imports {top}" for top in tops(part) - on_a_server - PROCESSORS]
    for where in {where for where, _ in reached(modules)}:
        for node in modules[where].tree.body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                wrong += [f"{where}: imports {top} when it is loaded" for top in tops(node) - on_a_server]
    return sorted(set(wrong))


def read_weights(node: ast.AST) -> list[str]:
    """What of a module it reads that a block of an ordinary key does not have, in words."""
    asked = ""
    if ast.unparse(node).startswith(("self.adapter.", "inspect.signature(")):  # a graph leaves its adapter behind
        return []
    if isinstance(node, ast.Call) and ast.unparse(node.func) in ("getattr", "hasattr", "attrgetter"):
        asked = next((str(one.value) for one in node.args if isinstance(one, ast.Constant)), "")
    elif isinstance(node, ast.Attribute):
        asked = node.attr
        if isinstance(node.value, ast.Attribute) and node.value.attr == "_module" and asked not in THERE:
            return [f"reads {ast.unparse(node)}, which is empty on NDIF"]
    if asked in WEIGHTS:
        return [f"reads {ast.unparse(node)}, which is empty on NDIF"]
    held = node.value if isinstance(node, ast.Assign | ast.NamedExpr | ast.Return) else None
    if isinstance(held, ast.Attribute) and held.attr == "_module":
        return [f"keeps {ast.unparse(held)}, whose weights are empty on NDIF"]
    return []


def tops(node: ast.Import | ast.ImportFrom) -> set[str]:
    """The top-level packages of an import."""
    names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
    return {name.split(".")[0] for name in names}
