"""NDIF's server and what it stands on, started on loopback and stopped again with all that they started themselves."""

import contextlib
import ctypes
import ipaddress
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from pathlib import Path

import psutil
from installation import program

HERE = Path(__file__).parent
LOOPBACK = "127.0.0.1"
KEYS = {"ordinary": "0d1f0000-0000-4000-8000-000000000001", "trusted": "0d1f0000-0000-4000-8000-000000000002"}
TABLES = f"""
CREATE TABLE users (user_id text PRIMARY KEY, email text);
CREATE TABLE keys (key_id uuid PRIMARY KEY, user_id text);
CREATE TABLE user_tags (user_tag_id int PRIMARY KEY, name text);
CREATE TABLE key_user_tag_assignments (key_id uuid, user_tag_id int);
INSERT INTO users VALUES ('tests', 'tests@localhost');
INSERT INTO keys VALUES ('{KEYS["ordinary"]}', 'tests'), ('{KEYS["trusted"]}', 'tests');
INSERT INTO user_tags VALUES (1, 'trusted');
INSERT INTO key_user_tag_assignments VALUES ('{KEYS["trusted"]}', 1);
"""
PORTS = "redis postgres store hub api gcs client objects nodes dashboard agent agent_grpc runtime metrics".split()
EXECUTION_SECONDS = 300


class NotStarted(Exception):
    """A service did not come up; the text holds the end of its log."""


def free_ports(names):
    """A free port for each name, no two alike: all are held open until all are known."""
    with contextlib.ExitStack() as held:
        sockets = {name: held.enter_context(contextlib.closing(socket.socket())) for name in names}
        for one in sockets.values():
            one.bind((LOOPBACK, 0))
        return {name: one.getsockname()[1] for name, one in sockets.items()}


def answers(port):
    """Whether something listens on a port."""
    with contextlib.closing(socket.socket()) as tried:
        tried.settimeout(1)
        return tried.connect_ex((LOOPBACK, port)) == 0


def adopt_orphans():
    """Makes this process the parent of whatever its descendants leave behind (Linux), so that all can be stopped."""
    PR_SET_CHILD_SUBREAPER = 36
    ctypes.CDLL(None).prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


class Services:
    """All of them: `with Services(programs, models) as server`.

    Attributes:
        programs: the folder of programs of the server's virtual environment.
        models: the folders that its hub has, by name.
        ports: where each listens.
        folder: logs and data, gone afterwards unless something failed.
        environment: what a client sets to reach it, the key aside.
    """

    def __init__(self, programs, models, told=print):
        self.programs, self.models, self.told = Path(programs), models, told
        self.ports = free_ports(PORTS)
        self.folder = Path(tempfile.mkdtemp(prefix="real-ndif-", dir="/tmp"))  # short: sockets lie in it
        self.folder.chmod(0o755)  # PostgreSQL runs as another user where this runs as root
        self.running, self.token = {}, secrets.token_hex(32)  # of Ray, so that no other user of this machine joins
        self.environment = {
            "HF_ENDPOINT": f"http://{LOOPBACK}:{self.ports['hub']}",
            "HF_HOME": str(self.folder / "hub_cache"),
            "NDIF_HOST": f"http://{LOOPBACK}:{self.ports['api']}",
        }

    def __enter__(self):
        try:
            adopt_orphans()
            self._start_stores()
            self._start_ray()
            self._start_ndif()
        except BaseException as error:
            self.stop(keep_logs=not isinstance(error, KeyboardInterrupt))
            raise
        return self

    def __exit__(self, kind, error, trace):
        self.stop(keep_logs=kind not in (None, KeyboardInterrupt))

    def server_environment(self):
        """Of the server's processes."""
        ports = self.ports
        kept = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
        return {
            **kept,
            "PATH": f"{self.programs}:{kept.get('PATH', '/usr/bin:/bin')}",
            "HF_ENDPOINT": self.environment["HF_ENDPOINT"],
            "HF_HOME": str(self.folder / "hub_cache_there"),
            "AWS_ACCESS_KEY_ID": "tests",
            "AWS_SECRET_ACCESS_KEY": "tests",
            "NDIF_REDIS_URL": f"redis://{LOOPBACK}:{ports['redis']}",
            "NDIF_RAY_ADDRESS": f"ray://{LOOPBACK}:{ports['client']}",
            "NDIF_OBJECT_STORE_URL": f"http://{LOOPBACK}:{ports['store']}",
            "NDIF_POSTGRES_URL": f"postgresql://ndif@{LOOPBACK}:{ports['postgres']}/postgres",
            "NDIF_DEFAULT_MODEL_ACTOR_CLASS": "ndif.services.ray.sandbox.model.SandboxModelActor",
            "NDIF_SANDBOX_POOL_SIZE": "2",
            "NDIF_AUTOSCALING_MAX_REPLICAS": "1",
            "NDIF_API_PORT": str(ports["api"]),
            "NDIF_DEFAULT_EXECUTION_TIMEOUT_SECONDS": str(EXECUTION_SECONDS),
            "NDIF_HOME": str(self.folder / "ndif"),
            "NDIF_STAND_IN_GPU": "1",
            "RAY_memory_monitor_refresh_ms": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # one machine alone: 127.0.0.1, not its address
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            "GRPC_ENABLE_FORK_SUPPORT": "0",
            "OMP_NUM_THREADS": "1",
            "TOKENIZERS_PARALLELISM": "false",
        }

    def start(self, name, *command, until, seconds=180, **how):
        """Starts a service and waits until it is there."""
        before = time.time()
        log = self.folder / f"{name}.log"
        with open(log, "ab") as out:
            self.running[name] = subprocess.Popen(
                [str(part) for part in command],
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=out,
                cwd=self.folder,
                env=self.server_environment(),
                start_new_session=True,  # a Ctrl-C is for this process, which then stops them in order
                **how,
            )
        while not until():
            if self.running[name].poll() is not None or time.time() - before > seconds:
                raise NotStarted(f"{name} did not start; the end of {log}:\n{log.read_text()[-3000:]}")
            time.sleep(0.2)
        self.told(f"started {name} ({time.time() - before:.1f} s)", flush=True)

    def call(self, *command, seconds=300):
        """A command of the server's environment that must not fail; returns what it prints."""
        command = [str(part) for part in command]
        environment = self.server_environment()
        # Not called in the repository: Ray would hand it on to the models' processes, as a place of modules.
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=seconds, cwd=self.folder
        )
        if done.returncode:
            raise NotStarted(f"`{' '.join(command)}` failed:\n{(done.stdout + done.stderr)[-3000:]}")
        return done.stdout

    def _start_stores(self):
        ports = self.ports
        self.start(
            *("redis", program("redis-server"), "--bind", LOOPBACK, "--port", ports["redis"]),
            *("--save", "", "--appendonly", "no"),
            until=lambda: answers(ports["redis"]),
        )
        data, who = self.folder / "postgres", {}
        data.mkdir(mode=0o700)
        if os.geteuid() == 0:  # PostgreSQL refuses to run as root
            who = {"user": "postgres"}
            shutil.chown(data, "postgres")
        made = [program("initdb"), "-D", data, "-U", "ndif", "-A", "trust", "--no-sync"]
        subprocess.run(made, check=True, stdout=subprocess.DEVNULL, cwd="/", **who)
        self.start(
            *("postgres", program("postgres"), "-D", data, "-p", ports["postgres"]),
            *("-c", f"listen_addresses={LOOPBACK}", "-c", f"unix_socket_directories={data}", "-c", "fsync=off"),
            until=lambda: answers(ports["postgres"]),
            **who,
        )
        psql = [program("psql"), "-q", "-h", LOOPBACK, "-p", ports["postgres"], "-U", "ndif", "-d", "postgres"]
        self.call(*psql, "-v", "ON_ERROR_STOP=1", "-c", TABLES)
        self.start(
            *("store", self.programs / "moto_server", "-H", LOOPBACK, "-p", ports["store"]),
            until=lambda: answers(ports["store"]),
        )
        named = [f"{name}={folder}" for name, folder in self.models.items()]
        self.start(
            *("hub", self.programs / "python", HERE / "hub.py", ports["hub"], *named),
            until=lambda: answers(ports["hub"]),
        )

    def _start_ray(self):
        """Ray, with a stand-in GPU in every Python of the server's environment, the blocks' own processes too."""
        ports, (site,) = self.ports, self.programs.parent.glob("lib/python*/site-packages")
        shutil.copy(HERE / "stand_in_gpu.py", site)
        # The processes of ordinary keys' blocks inherit almost nothing, but read a model's configuration from the hub.
        endpoint = f"os.environ.setdefault('HF_ENDPOINT', '{self.environment['HF_ENDPOINT']}')"
        (site / "real_ndif.pth").write_text(f"import os; {endpoint}; import stand_in_gpu\n")
        memory = {"head": 10, "cuda_memory_bytes": 8e9, "cpu_memory_bytes": 8e9}
        self.start(
            *("ray", self.programs / "ray", "start", "--head", "--block", "--disable-usage-stats"),
            f"--node-ip-address={LOOPBACK}",
            *("--num-cpus=4", "--num-gpus=1", f"--resources={json.dumps(memory)}"),
            *(f"--port={ports['gcs']}", f"--ray-client-server-port={ports['client']}"),
            *(f"--object-manager-port={ports['objects']}", f"--node-manager-port={ports['nodes']}"),
            *("--include-dashboard=true", f"--dashboard-host={LOOPBACK}", f"--dashboard-port={ports['dashboard']}"),
            *(f"--dashboard-agent-listen-port={ports['agent']}", f"--dashboard-agent-grpc-port={ports['agent_grpc']}"),
            *(f"--runtime-env-agent-port={ports['runtime']}", f"--metrics-export-port={ports['metrics']}"),
            *("--object-store-memory=200000000", f"--temp-dir={self.folder / 'ray'}"),
            until=lambda: answers(ports["client"]) and answers(ports["dashboard"]),
        )

    def _start_ndif(self):
        ports = self.ports
        controller = [self.programs / "python", "-m", "ndif.services.ray.deployments.controller.controller"]
        self.call("env", f"RAY_ADDRESS={LOOPBACK}:{ports['gcs']}", *controller)
        self.told("started controller", flush=True)
        self.start(
            *("api", self.programs / "gunicorn", "--config", "python:ndif.services.api.gunicorn_conf"),
            *("--bind", f"{LOOPBACK}:{ports['api']}", "ndif.services.api.app:app"),
            until=self._connected,
        )

    def _connected(self):
        """Whether the API answers and has found Ray."""
        import httpx

        with contextlib.suppress(httpx.HTTPError):
            return httpx.get(f"{self.environment['NDIF_HOST']}/env", timeout=90).status_code == 200
        return False

    def deploy(self, name, dtype):
        """Deploys a model of the hub; `ndif deploy` returns when it is ready."""
        before = time.time()
        task = ("--task", "image-text-to-text", "--dtype", dtype)
        self.call(self.programs / "ndif", "deploy", name, *task, seconds=600)
        self.told(f"deployed {name} in {dtype} ({time.time() - before:.1f} s)", flush=True)

    def holds(self, *modules):
        """Those of the modules that the server could import."""
        asked = f"import importlib.util as u; print(*[m for m in {modules} if u.find_spec(m)])"
        return self.call(self.programs / "python", "-c", asked).split()

    def listening_elsewhere(self):
        """The addresses, of what was started, that others could reach: there must be none."""
        found = []
        for process in psutil.Process().children(recursive=True):
            with contextlib.suppress(psutil.Error):
                for one in process.net_connections(kind="inet"):
                    address = ipaddress.ip_address(one.laddr.ip.removeprefix("::ffff:")) if one.laddr else None
                    if one.status == psutil.CONN_LISTEN and not address.is_loopback:
                        found.append(f"{process.name()} on {one.laddr.ip}:{one.laddr.port}")
        return found

    def stop(self, keep_logs=False):
        """Stops everything, last started first, and whatever those had started; a second Ctrl-C changes nothing."""
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        self.told("stopping all that was started", flush=True)
        for process in reversed(self.running.values()):
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(timeout=20)
        left = psutil.Process().children(recursive=True)
        for process in left:
            with contextlib.suppress(psutil.Error):
                process.kill()
        psutil.wait_procs(left, timeout=20)
        for socket_file in Path("/tmp").glob("sbx-*.sock"):
            if not any(str(socket_file) == one.laddr for one in psutil.net_connections(kind="unix")):
                socket_file.unlink(missing_ok=True)
        if keep_logs:
            self.told(f"logs are kept in {self.folder}")
        else:
            shutil.rmtree(self.folder, ignore_errors=True)
