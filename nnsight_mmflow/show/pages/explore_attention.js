// Attention of one layer and head: on the picture, on the words, and as a matrix.
const { layers, heads, targets, sources, lower, powers, scales, sinks, chips, generated } = page.data;
const rows = targets.length, columns = sources.length, cells = lower ? (rows * (rows + 1)) / 2 : rows * columns;
const rowOf = names.map(() => -1), columnOf = names.map(() => -1);
targets.forEach((position, row) => { rowOf[position] = row; });
sources.forEach((position, column) => { columnOf[position] = column; });
const inPicture = new Set(chips.flatMap((chip) => chip.positions ?? []));
const held = new Map();
let shown, mass, selected = generated[0] ?? targets[rows - 1], cell = [rows - 1, columns - 1], turn = 0;

const bytesOf = async (index) => {
  const read = () => Promise.all(["layer", "mass"].map((name) => page.bytes(`${name} ${layers[index]}`)));
  if (!held.has(index)) held.set(index, await read());
  if (held.size > 4) held.delete(held.keys().next().value); // a few layers at a time: each may take tens of MB
  return held.get(index);
};
// Weights of a head, or over heads: (rows * columns), 0 where nothing is read.
const decoded = (bytes, index, choice) => {
  const packed = new Float32Array(cells), all = choice === "mean" || choice === "max";
  for (const head of all ? heads.keys() : [Number(choice)]) {
    const largest = scales[index][head], power = 1 / powers[index], from = head * cells;
    const table = Float32Array.from({ length: 256 }, (_, step) => largest * (step / 255) ** power);
    if (choice === "max") for (let i = 0; i < cells; i++) packed[i] = Math.max(packed[i], table[bytes[from + i]]);
    else for (let i = 0; i < cells; i++) packed[i] += table[bytes[from + i]];
  }
  if (choice === "mean") for (let i = 0; i < cells; i++) packed[i] /= heads.length;
  if (!lower) return packed;
  const full = new Float32Array(rows * columns);
  for (let row = 0, from = 0; row < rows; from += ++row) full.set(packed.subarray(from, from + row + 1), row * columns);
  return full;
};

// How much of all that the selected position reads is an image's: exact to 1/255. Of the largest weights, no sum.
const massOf = (image) => {
  const row = rowOf[selected], choice = at("head").value;
  if (row < 0 || choice === "max" || !receives()) return NaN;
  const chosen = choice === "mean" ? [...heads.keys()] : [Number(choice)];
  const from = (head) => (image * heads.length + head) * rows + row;
  return chosen.reduce((sum, head) => sum + mass[from(head)] / 255, 0) / chosen.length;
};

const layerIndex = () => Number(at("layer").value);
const sinksHere = () => new Set(sinks[layerIndex()]);
// What a target gives a source; NaN where that was not read, or cannot be.
const weight = (target, source) => {
  const row = rowOf[target], column = columnOf[source];
  return row < 0 || column < 0 || (lower && column > row) ? NaN : shown[row * columns + column];
};
const receives = () => at("direction").value === "receives";
const toward = (other) => (receives() ? weight(selected, other) : weight(other, selected));
const left = () => (at("sinks").checked ? new Set([...sinks[layerIndex()], selected]) : new Set());
const highest = (positions) => {
  const out = left(), there = positions.map(toward).filter((value) => value > 0);
  const kept = positions.filter((position) => !out.has(position)).map(toward).filter((value) => value > 0);
  const high = (kept.length ? kept : there).reduce((most, value) => Math.max(most, value), 0);
  return { high, beyond: there.some((value) => value > high) };
};
const told = (number) => digits(number, 2);
const scaleBar = (id, { high, beyond }) => {
  at(id).hidden = !high;
  bar(id, "0", told(high) + (beyond ? " and more" : ""));
};

const drawMatrix = () => {
  const out = at("sinks").checked ? sinksHere() : new Set(), itself = at("sinks").checked;
  const skipped = sources.map((position) => out.has(position));
  const counted = []; // one cell in a hundred may lie beyond the scale: the first rows, of few sources, are all large
  let most = 0;
  for (let row = 0, i = 0; row < rows; row++)
    for (let column = 0; column < columns; column++, i++) {
      if (shown[i] > most) most = shown[i];
      if (shown[i] > 0 && !skipped[column] && !(itself && targets[row] === sources[column])) counted.push(shown[i]);
    }
  const high = Float32Array.from(counted).sort()[Math.floor(0.99 * counted.length)] || most || 1;
  const image = new ImageData(columns, rows), pixels = new Uint32Array(image.data.buffer);
  const table = Uint32Array.from({ length: 256 }, (_, step) => {
    const [red, green, blue] = colour(step / 255);
    return (255 << 24) | (blue << 16) | (green << 8) | red; // as little-endian machines keep red, green, blue, alpha
  });
  for (let row = 0, i = 0; row < rows; row++)
    for (let column = 0; column < columns; column++, i++)
      pixels[i] = lower && column > row ? 0xffffffff : table[Math.round(255 * Math.min(1, Math.sqrt(shown[i] / high)))];
  Object.assign(at("weights"), { width: columns, height: rows }).getContext("2d").putImageData(image, 0, 0);
  bar("matrix-bar", "0", `${told(high)}${most > high ? " and more" : ""}; half way ${told(high / 4)} (square root)`);
};
const edge = (canvas, positions, across) => {
  Object.assign(canvas, across ? { width: positions.length } : { height: positions.length });
  const pen = canvas.getContext("2d");
  positions.forEach((position, i) => {
    pen.fillStyle = inPicture.has(position) ? "#555" : "#ddd";
    pen.fillRect(across ? i : 0, across ? 0 : i, 1, 1);
  });
};
const place = (id, row, column) => {
  const line = at(id).style;
  at(id).hidden = row === -1 || column === -1;
  if (row !== null) { line.top = (100 * row) / rows + "%"; line.height = 100 / rows + "%"; }
  if (column !== null) { line.left = (100 * column) / columns + "%"; line.width = 100 / columns + "%"; }
};

const five = (id, title, other, known) => {
  at(`${id}-title`).textContent = `${named(selected)} ${title}`;
  const found = names.map((_, position) => [position, other(position)]).filter(([, value]) => value > 0);
  found.sort((one, two) => two[1] - one[1] || one[0] - two[0]);
  const here = sinksHere();
  const lines = found.slice(0, 5).map(([position, value]) =>
    make("li", { textContent: `${named(position)}: ${told(value)}${here.has(position) ? ", sink" : ""}` }));
  const nothing = known ? "nothing" : `unknown: it is not among the ${id === "receives" ? "targets" : "sources"} read`;
  at(id).replaceChildren(...(lines.length ? lines : [make("li", { textContent: nothing })]));
};

const buttons = chips.map((chip) => {
  const button = make("button", { type: "button", tabIndex: -1 });
  button.addEventListener("click", () => {
    if (chip.position !== undefined) return select(chip.position);
    document.querySelectorAll("#pictures .frame")[chip.image].focus();
    if (!chip.positions.includes(selected)) select(pictures[chip.image].views[0].patches[0][0]);
  });
  button.addEventListener("pointerenter", () => point(chip.position ?? null));
  button.addEventListener("pointerleave", () => point(null));
  at("words").append(button);
  return button;
});
at("words").addEventListener("keydown", (event) => {
  const step = ARROWS[event.key];
  if (!step) return;
  event.preventDefault();
  const next = buttons[buttons.indexOf(document.activeElement) + (step[0] || step[1])];
  if (!next) return;
  next.focus();
  const position = chips[buttons.indexOf(next)].position;
  if (position !== undefined) select(position);
});
const paintWords = ({ high }) => {
  const here = sinksHere(), first = chips.findIndex((chip) => chip.position === selected);
  chips.forEach((chip, i) => {
    const button = buttons[i], value = chip.position === undefined ? NaN : toward(chip.position);
    button.tabIndex = i === Math.max(0, first) ? 0 : -1;
    button.setAttribute("aria-pressed", chip.position === selected || (chip.positions ?? []).includes(selected));
    if (chip.position === undefined) {
      const sum = massOf(chip.image), count = `${pictures[chip.image].label}: ${chip.positions.length} tokens`;
      button.textContent = count + (Number.isNaN(sum) ? "" : `, ${told(sum)} in all`);
      return;
    }
    const parts = Number.isNaN(value) ? null : colour(value / (high || 1));
    Object.assign(button.style, { background: parts ? css(parts) : "", color: parts ? ink(parts) : "" });
    button.textContent = chip.text;
    button.setAttribute("aria-label", `${named(chip.position)}${parts ? ": " + told(value) : ""}`);
    if (here.has(chip.position)) button.append(make("small", { textContent: "sink" }));
  });
};

const say = (text) => { at("reading").textContent = text || "\u00a0"; };
const point = (position) => {
  if (position === null) return say("");
  const value = toward(position), words = receives() ? "receives from it" : "sends it";
  say(`${named(position)}: ${names[selected]} ${words} ${Number.isNaN(value) ? "nothing that was read" : told(value)}`);
};
const refresh = () => {
  const image = highest(drawn.positions()), text = highest(chips.map((chip) => chip.position ?? -1).filter((one) => one >= 0));
  const here = sinksHere();
  const shade = (position) => {
    const value = toward(position);
    return Number.isNaN(value) ? null : colour(value / (image.high || 1));
  };
  drawn.paint(shade, { selected, ringed: (position) => here.has(position) });
  paintWords(text);
  scaleBar("picture-bar", image);
  scaleBar("words-bar", text);
  five("receives", "receives most from", (other) => weight(selected, other), rowOf[selected] >= 0);
  five("sends", "sends most to", (other) => weight(other, selected), columnOf[selected] >= 0);
  place("row-line", rowOf[selected], null);
  place("column-line", null, columnOf[selected]);
  place("cell-mark", ...cell);
  at("position").value = selected;
  const written = generated.indexOf(selected);
  if (written >= 0) at("token").value = written;
  at("token-name").textContent = written >= 0 ? `${written}: ${names[selected]}` : "none selected";
  const head = at("head").selectedOptions[0].textContent, what = receives() ? "what it receives" : "what it sends";
  at("state").textContent = `Layer ${layers[layerIndex()]}, ${head}. Selected: ${named(selected)}. Shown: ${what}.`;
  page.fit();
};
const select = (position) => {
  selected = position;
  drawn.reveal(position);
  refresh();
  say("");
};
const load = async () => {
  const mine = ++turn, index = layerIndex();
  at("layer-name").textContent = layers[index];
  const [bytes, sums] = await bytesOf(index);
  if (mine !== turn) return; // the slider has gone on
  mass = sums;
  shown = decoded(bytes, index, at("head").value);
  drawMatrix();
  refresh();
};
const readCell = () => {
  const [target, source] = [targets[cell[0]], sources[cell[1]]], value = weight(target, source);
  place("cell-mark", ...cell);
  say(`${named(target)} receives from ${named(source)}: ${Number.isNaN(value) ? "cannot, it comes later" : told(value)}`);
};
const cellUnder = (event) => {
  const box = at("cells").getBoundingClientRect();
  const within = (share, count) => Math.min(count - 1, Math.max(0, Math.floor(share * count)));
  cell = [within((event.clientY - box.top) / box.height, rows), within((event.clientX - box.left) / box.width, columns)];
};
