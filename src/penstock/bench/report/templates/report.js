"use strict";
for (const table of document.querySelectorAll("table.sortable")) {
  const body = table.tBodies[0];
  const key = (row, column) => {
    let place = 0;
    for (const cell of row.cells) {
      if (place <= column && column < place + cell.colSpan) return cell.dataset.key ?? cell.textContent.trim();
      place += cell.colSpan;
    }
    return "";
  };
  const isNumber = (text) => text !== "" && Number.isFinite(Number(text));
  const compare = (one, other, direction) => {
    if (isNumber(one) && isNumber(other)) return direction * (Number(one) - Number(other));
    if (isNumber(one) !== isNumber(other)) return isNumber(one) ? -1 : 1;
    return direction * one.localeCompare(other);
  };
  for (const header of table.tHead.querySelectorAll("th")) {
    const button = document.createElement("button");
    button.type = "button";
    button.append(...header.childNodes);
    header.append(button);
    button.addEventListener("click", () => {
      const direction = header.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of table.tHead.querySelectorAll("th")) other.removeAttribute("aria-sort");
      header.setAttribute("aria-sort", direction > 0 ? "ascending" : "descending");
      const column = header.cellIndex;
      const rows = [...body.rows].map((row) => [key(row, column), row]);
      rows.sort((one, other) => compare(one[0], other[0], direction));
      body.append(...rows.map((pair) => pair[1]));
    });
  }
}
