// Which arrows are drawn, and what the one under the pointer or in focus says.
const figures = [...document.querySelectorAll("figure")];
const shown = () => figures.find((figure) => !figure.hidden);
const order = (one, other) => one.dataset.layer - other.dataset.layer || one.dataset.row - other.dataset.row;
const drawn = () => [...shown().querySelectorAll(".arrow:not(.off)")].sort(order);
const hint = "Point at an arrow, or go from one to the next with the left and right keys, for its numbers.";

const leave = () => {
  document.querySelectorAll(".on").forEach((arrow) => arrow.classList.remove("on"));
  figures.forEach((figure) => figure.classList.remove("chosen"));
  told.textContent = hint;
};

const tell = (arrow) => {
  leave();
  arrow.classList.add("on");
  arrow.closest("figure").classList.add("chosen");
  told.textContent = arrow.getAttribute("aria-label");
};

const draw = () => {
  const size = document.getElementById("window").value;
  for (const figure of figures) figure.hidden = figure.dataset.window !== size;
  for (const arrow of shown().querySelectorAll(".arrow")) {
    const large = Number(arrow.dataset.size) >= Number(least.value);
    arrow.classList.toggle("off", !(large && (!passing.checked || arrow.dataset.passes === "1")));
    arrow.tabIndex = -1;
  }
  const there = drawn();
  if (there.length) there[0].tabIndex = 0; // one stop of the tab key; from there the arrow keys
  least_told.textContent = least.value + "%";
  count.textContent = there.length + " arrow" + (there.length === 1 ? "" : "s");
  leave();
  page.fit();
};

for (const figure of figures) {
  const picture = figure.querySelector("svg");
  picture.addEventListener("pointerover", (event) => {
    const arrow = event.target.closest(".arrow");
    if (arrow) tell(arrow);
  });
  picture.addEventListener("pointerleave", leave);
  picture.addEventListener("focusin", (event) => tell(event.target.closest(".arrow")));
  picture.addEventListener("focusout", leave);
  picture.addEventListener("keydown", (event) => {
    const there = drawn();
    const at = there.indexOf(document.activeElement);
    const to = { ArrowLeft: at - 1, ArrowRight: at + 1, Home: 0, End: there.length - 1 }[event.key];
    if (to === undefined || !there[to]) return;
    event.preventDefault();
    document.activeElement.tabIndex = -1;
    there[to].tabIndex = 0;
    there[to].focus();
  });
  figure.querySelector("details").addEventListener("toggle", page.fit);
}
for (const name of ["window", "least", "passing"]) document.getElementById(name).addEventListener("input", draw);
draw();
