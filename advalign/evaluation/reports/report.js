for (const th of document.querySelectorAll("th")) th.addEventListener("click", () => {
  const body = th.closest("table").tBodies[0], column = th.cellIndex, up = th.ariaSort !== "ascending";
  for (const other of th.parentNode.children) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.key, number = [...body.rows].every(row => key(row) === "" || !isNaN(key(row)));
  const compare = (a, b) => (key(a) === "") - (key(b) === "") || (up ? 1 : -1) * (number ? key(a) - key(b) : key(a).localeCompare(key(b)));
  [...body.rows].sort(compare).forEach(row => body.append(row));
});
