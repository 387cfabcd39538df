"use strict";
// Lets tables be sorted and filtered; without it they stand as they were written.

function valueOf(row, column) {
  const cell = row.cells[column];
  return cell.dataset.value === undefined ? cell.textContent.trim() : Number(cell.dataset.value);
}

// Numbers in their order, then words in theirs: what has no number comes last either way.
function compare(one, other, sign) {
  if (typeof one === typeof other) {
    return sign * (typeof one === "number" ? one - other : one.localeCompare(other));
  }
  return typeof one === "number" ? -1 : 1;
}

function sortBy(table, header) {
  const column = header.cellIndex;
  const up = header.getAttribute("aria-sort") !== "ascending";
  for (const each of table.tHead.rows[0].cells) each.removeAttribute("aria-sort");
  header.setAttribute("aria-sort", up ? "ascending" : "descending");
  const body = table.tBodies[0];
  const rows = [...body.rows].map((row) => [valueOf(row, column), row]);
  rows.sort(([one], [other]) => compare(one, other, up ? 1 : -1));
  body.append(...rows.map(([, row]) => row));
}

function filterBy(table, words, count) {
  let shown = 0;
  for (const row of table.tBodies[0].rows) {
    const text = row.textContent.toLowerCase();
    row.hidden = !words.every((word) => text.includes(word));
    shown += !row.hidden;
  }
  count.textContent = `${shown} of ${table.tBodies[0].rows.length}`;
}

for (const table of document.querySelectorAll("table.sortable")) {
  for (const header of table.tHead.rows[0].cells) {
    const button = document.createElement("button");
    button.textContent = header.textContent;
    button.addEventListener("click", () => sortBy(table, header));
    header.replaceChildren(button);
  }
  const box = document.createElement("label");
  const input = document.createElement("input");
  const count = document.createElement("span");
  box.className = "filter";
  input.type = "search";
  input.placeholder = "int8 ort";
  count.className = "muted small";
  count.setAttribute("aria-live", "polite");
  box.append("Rows with", input, count);
  table.parentElement.before(box);
  const refresh = () => {
    filterBy(table, input.value.toLowerCase().split(/\s+/).filter(Boolean), count);
  };
  input.addEventListener("input", refresh);
  refresh();
}
