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
