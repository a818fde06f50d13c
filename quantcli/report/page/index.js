const shelf = document.querySelector(".shelf");
if (shelf) {
  const tools = document.querySelector(".tools");
  const [filter, order, told] = ["input", "select", "output"].map((tag) => tools.querySelector(tag));
  const models = [...shelf.tBodies].map((body, place) => {
    const [head, ...rows] = body.rows;
    const [name, ...about] = [...head.cells[0].querySelectorAll(":scope > :is(b, span:not(.links))")]
      .map((part) => part.textContent);
    const texts = rows.map(({ cells: [file, type] }) =>
      [name, ...about, file.textContent, type.textContent].join(" ").toLowerCase());
    return { body, place, name, rows, texts };
  });
  const files = models.reduce((sum, model) => sum + model.rows.length, 0);
  // Show the files that hold every word of the filter, in their name, type or model.
  const show = () => {
    const words = filter.value.toLowerCase().split(/\s+/).filter(Boolean);
    let seen = 0;
    for (const { body, rows, texts } of models) {
      let here = 0;
      rows.forEach((row, i) => {
        row.hidden = !words.every((word) => texts[i].includes(word));
        here += !row.hidden;
      });
      body.hidden = !here;
      seen += here;
    }
    told.textContent = words.length ? `${seen} of ${files} files` : "";
    sortAgain.get(shelf)?.();
  };
  let waiting = 0;
  filter.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(show, files > 2000 ? 200 : 0);
  });
  const known = new Map(models.map((model) => [model.body, model]));
  order.addEventListener("change", () => {
    for (const heading of shelf.tHead.rows[0].cells) heading.removeAttribute("aria-sort");
    const by = order.value;
    sortTable(shelf, (row) => {
      const { body, place, name } = known.get(row.parentNode);
      if (by === "name") return name;
      return by ? parseFloat(body.dataset[by]) || null : place;
    }, by !== "" && by !== "name");
  });
  shelf.tHead.addEventListener("click", (event) => {
    if (event.target.closest("button")) order.selectedIndex = -1; // sorted by a column instead
  });
  tools.addEventListener("submit", (event) => event.preventDefault());
  // Long hashes are cut short: the whole one beside the pointer.
  shelf.addEventListener("pointerover", (event) => {
    if (event.target.className === "hash") event.target.title = event.target.textContent;
  });
  tools.hidden = false;
}
