// Numbers of image tokens, layer by layer: on the picture, and of the selected patch through the layers.
// With generated tokens the numbers of one token after another; the colour scale is of all of them.
const { labels, tokens, positions, kept, signed, what, vocabulary, ranks } = page.data;
const raw = await page.bytes("values"), stacked = new Float32Array(raw.buffer), count = positions.length;
let numbers = stacked.subarray(0, labels.length * count);
const which = vocabulary && new Int32Array((await page.bytes("which")).buffer);
const chances = vocabulary && new Uint16Array((await page.bytes("chances")).buffer);
const columnOf = new Map(positions.map((position, column) => [position, column]));
let selected = pictures[0].views[0].patches[0][0];

const layer = () => Number(at("layer").value);
const value = (position, at = layer()) => (columnOf.has(position) ? numbers[at * count + columnOf.get(position)] : NaN);
const told = (number) => {
  if (Number.isNaN(number)) return "no value";
  return kept ? (number ? "kept" : "dropped") : digits(number, 3);
};
const wordsOf = (position, layer) => {
  if (!vocabulary || !columnOf.has(position)) return [];
  const from = (layer * count + columnOf.get(position)) * ranks, found = [];
  for (let rank = from; rank < from + ranks && which[rank] >= 0; rank++)
    found.push(`${vocabulary[which[rank]]} ${digits(chances[rank] / 65535, 2)}`);
  return found;
};
const scale = () => {
  const from = layer() * count, all = at("scale").value === "all";
  const there = (all ? stacked : numbers.subarray(from, from + count)).filter((number) => !Number.isNaN(number));
  const low = there.reduce((one, two) => Math.min(one, two), Infinity);
  const high = there.reduce((one, two) => Math.max(one, two), -Infinity);
  if (!signed) return { low: 0, high: high || 1 };
  const far = Math.max(-low, high) || 1;
  return { low: -far, high: far };
};
const shadeOf = ({ low, high }) => (position) => {
  const number = value(position);
  if (Number.isNaN(number)) return null;
  if (kept) return number ? null : [150, 150, 150];
  return colour((number - low) / (high - low));
};

const buttons = labels.map((label, i) => {
  const button = make("button", { type: "button" });
  button.addEventListener("click", () => { at("layer").value = i; refresh(); });
  at("words").append(button);
  return button;
});
const paintLayers = (range) => buttons.forEach((button, i) => {
  const number = value(selected, i), grey = kept || Number.isNaN(number);
  const parts = grey ? (number ? [255, 255, 255] : [190, 190, 190]) : colour((number - range.low) / (range.high - range.low));
  Object.assign(button.style, { background: css(parts), color: ink(parts) });
  button.setAttribute("aria-pressed", i === layer());
  const [word] = wordsOf(selected, i);
  button.textContent = `${labels[i]}: ${word ?? told(number)}`;
});
const say = (text) => { at("reading").textContent = text || "\u00a0"; };
const point = (position) => {
  if (position === null) return say("");
  const words = wordsOf(position, layer()).join(", ");
  say(`${named(position)}: ${told(value(position))}${words ? "; " + words : ""}`);
};
const largest = () => {
  const found = positions.map((position) => [position, value(position)]).filter(([, number]) => !Number.isNaN(number));
  if (kept) {
    const seen = found.filter(([, number]) => number).length;
    at("largest-title").textContent = "in this layer";
    return [`${seen} of ${count} image tokens kept`, `${count - seen} dropped (grey, hatched)`];
  }
  at("largest-title").textContent = signed ? "farthest from 0 in this layer" : "largest in this layer";
  found.sort((one, two) => Math.abs(two[1]) - Math.abs(one[1]) || one[0] - two[0]);
  return found.slice(0, 5).map(([position, number]) => `${named(position)}: ${told(number)}`);
};
const lines = (id, texts) => at(id).replaceChildren(...texts.map((textContent) => make("li", { textContent })));
const refresh = () => {
  const range = scale();
  drawn.paint(shadeOf(range), { selected, hatched: (position) => kept && value(position) === 0 });
  paintLayers(range);
  if (!kept) bar("picture-bar", digits(range.low, 3), `${digits(range.high, 3)} ${what}`);
  at("layer-name").textContent = labels[layer()];
  at("selected-name").textContent = named(selected);
  lines("said", wordsOf(selected, layer()));
  lines("largest", largest());
  at("position").value = selected;
  const whose = tokens.length ? ` of ${tokens[at("token").value]}` : "";
  at("token-name").textContent = tokens[at("token").value] ?? "";
  at("state").textContent = `Layer ${labels[layer()]}${whose}. Selected: ${named(selected)}: ${told(value(selected))}.`;
  page.fit();
};
const select = (position) => {
  selected = position;
  drawn.reveal(position);
  refresh();
  say("");
};

const drawn = figuresOf(select, point, refresh, !kept);
at("title").textContent = page.data.title;
Object.assign(at("layer"), { max: labels.length - 1, value: page.data.first });
at("layers").hidden = labels.length < 2;
at("scales").hidden = kept || labels.length < 2;
at("picture-bar").hidden = kept;
at("layer").addEventListener("input", refresh);
at("tokens").hidden = !tokens.length;
at("token").max = tokens.length - 1;
if (tokens.length) at("scale").options[0].textContent = "of all layers and tokens";
at("token").addEventListener("input", () => {
  const from = at("token").value * labels.length * count;
  numbers = stacked.subarray(from, from + labels.length * count);
  refresh();
});
at("scale").addEventListener("change", refresh);
at("position").addEventListener("change", () => {
  const wanted = Number(at("position").value);
  if (columnOf.has(wanted)) select(wanted);
  else at("position").value = selected;
});
refresh();
