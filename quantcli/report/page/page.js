"use strict";
// Sort a table by the column whose heading is pressed; press again to turn it round.
for (const heading of document.querySelectorAll("th[data-sort]")) {
  const button = document.createElement("button");
  button.append(...heading.childNodes);
  heading.append(button);
  button.addEventListener("click", () => {
    const column = heading.cellIndex;
    const numeric = heading.dataset.sort === "number";
    const down = heading.ariaSort ? heading.ariaSort !== "descending" : numeric;
    for (const other of heading.parentNode.cells) other.removeAttribute("aria-sort");
    heading.setAttribute("aria-sort", down ? "descending" : "ascending");
    const value = (row) => row.cells[column].dataset.value ?? row.cells[column].textContent;
    const order = numeric
      ? (a, b) => parseFloat(value(a)) - parseFloat(value(b))
      : (a, b) => value(a).localeCompare(value(b), "en", { numeric: true });
    const body = heading.closest("table").tBodies[0];
    body.append(...[...body.rows].sort((a, b) => (down ? -order(a, b) : order(a, b))));
  });
}
// Say which tensor the pointer is on in a map.
const tip = document.getElementById("tip");
for (const maps of document.querySelectorAll(".maps")) {
  const rows = JSON.parse(maps.querySelector("script").textContent);
  for (const map of maps.querySelectorAll("svg")) {
    map.addEventListener("pointerleave", () => { tip.hidden = true; });
    map.addEventListener("pointermove", (event) => {
      const box = map.getBoundingClientRect();
      const x = event.clientX - box.left, y = event.clientY - box.top;
      const row = rows.find(([top]) => y >= top && y < top + 24);
      const cell = row && row[1].find(([left, width]) => x >= left && x < left + width);
      tip.hidden = !cell;
      if (!cell) return;
      tip.textContent = cell[2];
      const room = document.documentElement.clientWidth - tip.offsetWidth - 8;
      tip.style.left = Math.max(8, Math.min(event.clientX + 12, room)) + "px";
      tip.style.top = event.clientY + 18 + "px";
    });
  }
}
