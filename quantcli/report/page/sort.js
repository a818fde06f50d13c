// Sort a table by the column whose heading is pressed; press again to turn it round. Rows stay in
// their group (tbody), below its own row (class "job"); groups follow their first row that is seen.
const collator = new Intl.Collator("en", { numeric: true });
const sortAgain = new WeakMap(); // a table and how it was sorted last
function sortTable(table, key, down) {
  // What has no value comes last either way.
  const order = ([a], [b]) => {
    if (a === b) return 0;
    if (a === null || b === null) return a === null ? 1 : -1;
    const rising = typeof a === "number" ? a - b : collator.compare(a, b);
    return down ? -rising : rising;
  };
  const groups = [...table.tBodies].map((body) => {
    const rows = [...body.rows].filter((row) => row.className !== "job");
    const keyed = rows.map((row) => [key(row), row]).sort(order);
    body.append(...keyed.map(([, row]) => row));
    return [keyed.find(([, row]) => !row.hidden)?.[0] ?? null, body];
  });
  if (groups.length > 1) table.append(...groups.sort(order).map(([, body]) => body));
  sortAgain.set(table, () => sortTable(table, key, down));
}
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
    sortTable(heading.closest("table"), (row) => {
      const cell = row.cells[column], text = cell.dataset.value ?? cell.textContent;
      const number = numeric ? parseFloat(text) : 0;
      return Number.isNaN(number) ? null : numeric ? number : text;
    }, down);
  });
}
