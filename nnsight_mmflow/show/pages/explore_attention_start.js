// What the controls do, and the first layer.
const drawn = figuresOf(select, point, refresh);
at("title").textContent = page.data.title;
at("kept").textContent = page.data.kept;
Object.assign(at("layer"), { max: layers.length - 1, value: page.data.first });
at("layers").hidden = layers.length < 2;
at("tokens").hidden = !generated.length;
at("token").max = generated.length - 1;
at("position").max = names.length - 1;
if (heads.length > 1) {
  at("head").append(make("option", { value: "mean", textContent: `mean of ${heads.length} heads` }));
  at("head").append(make("option", { value: "max", textContent: `largest of ${heads.length} heads` }));
}
heads.forEach((head, i) => at("head").append(make("option", { value: i, textContent: `head ${head}` })));
edge(at("across"), sources, true);
edge(at("down"), targets, false);
// Few rows are drawn as high as a finger, many as square cells.
at("cells").style.aspectRatio = `${columns} / ${Math.min(2 * columns, Math.max(rows, columns / 16))}`;

at("token").addEventListener("input", () => select(generated[at("token").value]));
at("layer").addEventListener("input", load);
at("head").addEventListener("change", load);
at("direction").addEventListener("change", refresh);
at("sinks").addEventListener("change", () => { drawMatrix(); refresh(); });
at("position").addEventListener("change", () => {
  const wanted = Number(at("position").value);
  if (Number.isInteger(wanted) && names[wanted] !== undefined) select(wanted);
  else at("position").value = selected;
});
at("cells").addEventListener("pointermove", (event) => { cellUnder(event); readCell(); });
at("cells").addEventListener("click", (event) => { cellUnder(event); select(targets[cell[0]]); readCell(); });
at("matrix").addEventListener("keydown", (event) => {
  const step = ARROWS[event.key];
  if (event.key === "Enter") select(targets[cell[0]]);
  else if (!step) return;
  else cell = [[0, rows], [1, columns]].map(([i, end]) => Math.min(end - 1, Math.max(0, cell[i] + step[i])));
  event.preventDefault();
  readCell();
});
at("matrix").setAttribute("aria-label", "whole matrix: arrow keys move a cell, Enter selects its target");
await load();
