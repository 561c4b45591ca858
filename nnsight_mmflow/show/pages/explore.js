// The pictures of a prompt with numbers on them: what figures of attention and of values share.
// Words reach the page as text, never as markup.
const at = (id) => document.getElementById(id);
const make = (name, given = {}) => Object.assign(document.createElement(name), given);
const { names, pictures } = page.data;
const palette = await page.bytes("palette");

const colour = (share) => {
  const step = 3 * Math.round(255 * Math.min(1, Math.max(0, share)));
  return [palette[step], palette[step + 1], palette[step + 2]];
};
const css = (parts) => `rgb(${parts.join(",")})`;
const ink = ([red, green, blue]) => (0.299 * red + 0.587 * green + 0.114 * blue > 130 ? "#000" : "#fff");
const digits = (number, count) => String(Number(number.toPrecision(count)));
const named = (position) => `${names[position]} (${position})`;
const ARROWS = { ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1] };

// A colour bar with its ends in numbers.
const bar = (id, low, high) => {
  const [canvas] = at(id).getElementsByTagName("canvas"), pen = canvas.getContext("2d");
  for (let step = 0; step < 256; step++) {
    pen.fillStyle = css(colour(step / 255));
    pen.fillRect(step, 0, 1, 1);
  }
  at(id).querySelector(".low").textContent = low;
  at(id).querySelector(".high").textContent = high;
};

const outline = (pen, [, , , left, top, right, bottom], width) => {
  for (const [style, line] of [["#fff", width + 2], ["#000", width]]) {
    Object.assign(pen, { strokeStyle: style, lineWidth: line });
    pen.strokeRect(left, top, right - left, bottom - top);
  }
};
const ring = (pen, [, , , left, top, right, bottom]) => {
  for (const [style, line] of [["#000", 5], ["#fff", 2.5]]) {
    Object.assign(pen, { strokeStyle: style, lineWidth: line });
    pen.beginPath();
    pen.arc((left + right) / 2, (top + bottom) / 2, Math.max(4, 0.34 * Math.min(right - left, bottom - top)), 0, 7);
    pen.stroke();
  }
};
const hatch = (pen, [, , , left, top, right, bottom]) => {
  pen.save();
  pen.beginPath();
  pen.rect(left, top, right - left, bottom - top);
  pen.clip();
  Object.assign(pen, { strokeStyle: "#333", lineWidth: 1 });
  pen.beginPath();
  const first = Math.ceil((left + top) / 9) * 9; // along whole diagonals of the picture, so that patches join
  for (let sum = first; sum < right + bottom; sum += 9) {
    pen.moveTo(sum - top, top);
    pen.lineTo(sum - bottom, bottom);
  }
  pen.stroke();
  pen.restore();
};

// One picture: `select` and `point` are called with a position when a patch is chosen, or pointed at (null: left).
const figure = (picture, select, point) => {
  const frame = make("div", { className: "frame", tabIndex: 0 });
  frame.setAttribute("role", "application");
  frame.setAttribute("aria-label", `${picture.label}: arrow keys move the selected patch`);
  frame.style.aspectRatio = `${picture.width} / ${picture.height}`;
  frame.style.maxWidth = picture.width + "px";
  const image = make("img", { src: picture.source, alt: "" });
  const sized = { width: picture.width, height: picture.height };
  const overlay = make("canvas", { className: "overlay", ...sized }), marks = make("canvas", sized);
  frame.append(image, overlay, marks);
  const whole = make("figure");
  // The picture as it is beside the map, and what the question is about marked on both.
  const pair = make("div", { className: "pair" }), bare = make("div", { className: "bare" });
  bare.append(make("img", { src: picture.source, alt: "the picture as it is" }));
  for (const [left, top, right, bottom] of picture.boxes) {
    for (const [under, above] of [[frame, marks], [bare, null]]) {
      const box = make("i", { className: "box" });
      const [x, y] = [100 / picture.width, 100 / picture.height];
      Object.assign(box.style, { left: left * x + "%", top: top * y + "%" });
      Object.assign(box.style, { width: (right - left) * x + "%", height: (bottom - top) * y + "%" });
      under.insertBefore(box, above);
    }
  }
  pair.append(frame, bare);
  whole.append(pair);
  if (pictures.length > 1) whole.append(make("figcaption", { textContent: picture.label }));
  at("pictures").append(whole);
  let view = picture.views[0], chosen = null;
  const topmost = (patches, x, y) =>
    patches.findLast((one) => one[3] <= x && x < one[5] && one[4] <= y && y < one[6]); // the last lies on top
  const under = (event) => {
    const x = (event.offsetX * picture.width) / frame.clientWidth;
    return topmost(view.patches, x, (event.offsetY * picture.height) / frame.clientHeight);
  };
  const holding = (position) => view.patches.find((one) => one[0] === position);
  frame.addEventListener("click", (event) => under(event) && select(under(event)[0]));
  frame.addEventListener("pointermove", (event) => point(under(event)?.[0] ?? null));
  frame.addEventListener("pointerleave", () => point(null));
  frame.addEventListener("keydown", (event) => {
    const step = ARROWS[event.key];
    if (!step) return;
    event.preventDefault();
    const from = holding(chosen);
    if (!from) return select(view.patches[0][0]);
    const there = (patch, by) => patch[1] === from[1] + by * step[0] && patch[2] === from[2] + by * step[1];
    for (let by = 1; by < 200; by++) { // patches of padding are not there: go over them
      const next = view.patches.find((patch) => patch[7] === from[7] && there(patch, by));
      if (next) return select(next[0]);
    }
  });
  const clean = (canvas) => {
    const pen = canvas.getContext("2d");
    pen.clearRect(0, 0, picture.width, picture.height);
    return pen;
  };
  return {
    views: picture.views.map((one) => one.name),
    // Whether a view shows this position's patch, and not only a rim of it below finer ones.
    has: (name, position) => {
      const patches = picture.views.find((one) => one.name === name)?.patches ?? [];
      const patch = patches.find((one) => one[0] === position);
      return patch && topmost(patches, (patch[3] + patch[5]) / 2, (patch[4] + patch[6]) / 2) === patch;
    },
    positions: () => view.patches.map((patch) => patch[0]),
    choose: (name) => { view = picture.views.find((one) => one.name === name) ?? picture.views[0]; },
    // `shade` gives a position's colour, or null; `mark` says which have a ring, which are hatched.
    paint: (shade, mark) => {
      const fill = clean(overlay), pen = clean(marks);
      for (const patch of view.patches) {
        const [position, , , left, top, right, bottom] = patch, parts = shade(position);
        if (parts) {
          fill.fillStyle = css(parts);
          fill.fillRect(left, top, right - left, bottom - top);
        } else fill.clearRect(left, top, right - left, bottom - top);
        if (mark.hatched?.(position)) hatch(pen, patch);
        if (mark.ringed?.(position)) ring(pen, patch);
      }
      chosen = mark.selected;
      if (holding(chosen)) outline(pen, holding(chosen), 2.5);
    },
  };
};

// All pictures, the choice of a view, and how much of the picture the overlay covers.
const figuresOf = (select, point, repaint, grey = true) => {
  const all = pictures.map((picture) => figure(picture, select, point));
  const views = [...new Set(all.flatMap((one) => one.views))];
  for (const name of views) at("view").append(make("option", { value: name, textContent: name }));
  at("views").hidden = views.length < 2;
  const choose = () => all.forEach((one) => one.choose(at("view").value));
  at("view").addEventListener("change", () => { choose(); repaint(); });
  const cover = () => {
    const share = at("opacity").value / 100;
    at("pictures").style.setProperty("--cover", share);
    at("pictures").style.setProperty("--grey", grey && share > 0 ? 1 : 0); // the picture's own colours would mix with the scale's
  };
  at("opacity").addEventListener("input", cover);
  cover();
  return {
    // Shows the view that has this position, if the view that is shown has not.
    reveal: (position) => {
      const shown = at("view").value;
      if (all.some((one) => one.has(shown, position) || (!one.views.includes(shown) && one.has("finest", position)))) return;
      const other = views.find((name) => all.some((one) => one.has(name, position)));
      if (other) { at("view").value = other; choose(); }
    },
    positions: () => all.flatMap((one) => one.positions()),
    paint: (shade, mark) => all.forEach((one) => one.paint(shade, mark)),
  };
};
