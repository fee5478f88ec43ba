"use strict";
const report = JSON.parse(document.getElementById("report-data").textContent);

// --- figures: drawn when they come into sight, so that a long page opens at once
function draw(box) {
  const plot = report.figures[box.id];
  Plotly.react(box, plot.data, plot.layout, { responsive: true, displaylogo: false });
}
const waiting = "IntersectionObserver" in window ? new IntersectionObserver((entries) => {
  for (const entry of entries) {
    if (entry.isIntersecting) { waiting.unobserve(entry.target); draw(entry.target); }
  }
}, { rootMargin: "1200px" }) : null;
const drawLater = (box) => waiting ? waiting.observe(box) : draw(box);
document.querySelectorAll(".plot").forEach(drawLater);

// --- the table: a click on a heading sorts, missing values stay last; the filter looks at every cell's text
const table = document.getElementById("trials"), body = table.tBodies[0];
let rows = Array.from(body.rows);
let sorted = null; // [column, downwards]
const valueOf = (row, column) => {
  const raw = row.cells[column].dataset.value;
  if (raw === undefined || raw === "") return null;
  const number = Number(raw);
  return Number.isNaN(number) ? raw : number;
};
function sort() {
  if (!sorted) return;
  const [column, down] = sorted, sign = down ? -1 : 1;
  rows.sort((a, b) => {
    const x = valueOf(a, column), y = valueOf(b, column);
    if (x === null || y === null) return (x === null) - (y === null);
    if (typeof x === typeof y) return x < y ? -sign : x > y ? sign : 0;
    return typeof x === "number" ? -1 : 1;
  });
  body.append(...rows);
}
function sortBy(column, heading) {
  const down = heading.getAttribute("aria-sort") !== "descending";
  for (const other of table.tHead.rows[0].cells) other.removeAttribute("aria-sort");
  heading.setAttribute("aria-sort", down ? "descending" : "ascending");
  sorted = [column, down];
  sort();
}
Array.from(table.tHead.rows[0].cells).forEach((heading, column) => {
  heading.tabIndex = 0;
  heading.addEventListener("click", () => sortBy(column, heading));
  heading.addEventListener("keydown", (event) => {
    if (event.key === "Enter" || event.key === " ") { event.preventDefault(); sortBy(column, heading); }
  });
});
const words = document.getElementById("words"), state = document.getElementById("state");
const count = document.getElementById("count");
function filter() {
  const wanted = words.value.toLowerCase().split(/\s+/).filter(Boolean);
  let shown = 0;
  for (const row of rows) {
    const text = row.textContent.toLowerCase();
    const fits = wanted.every((word) => text.includes(word)) && (!state.value || row.dataset.state === state.value);
    row.hidden = !fits;
    shown += fits;
  }
  count.textContent = `${shown} of ${rows.length} trials`;
}
words.addEventListener("input", filter);
state.addEventListener("change", filter);
filter();

// --- inside MLflow's viewer (a sandboxed frame) a click cannot leave the frame
if (window.origin === "null" && window.parent !== window) document.getElementById("framed").hidden = false;
