"use strict";
// Sorting: a button in each header of a table of class "sortable". Numbers as numbers, dashes always last.
const missing = "–";

function key(row, column, text) {
  const cell = row.cells[column];
  const shown = (cell.firstElementChild?.matches("a") ? cell.firstElementChild : cell).firstChild?.textContent.trim() ?? "";
  if (shown === missing || shown === "") return null;
  if (text) return shown;
  const number = parseFloat(shown.replace("−", "-").replace(/[<,\s]/g, ""));
  return Number.isNaN(number) ? shown : number;
}

function compare(a, b, sign) {
  if (a === null || b === null) return (a === null) - (b === null);
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), undefined, { numeric: true });
}

function sort(head) {
  const table = head.closest("table");
  const column = head.cellIndex;
  const text = head.classList.contains("text");
  const sign = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
  for (const other of head.parentElement.cells) other.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", sign === 1 ? "ascending" : "descending");
  const rows = [...table.tBodies[0].rows].map((row) => [key(row, column, text), row]);
  rows.sort((one, two) => compare(one[0], two[0], sign));
  table.tBodies[0].append(...rows.map(([, row]) => row));
}

for (const head of document.querySelectorAll("table.sortable thead th")) {
  const button = document.createElement("button");
  button.type = "button";
  button.append(...head.childNodes);
  button.addEventListener("click", () => sort(head));
  head.append(button);
}

// The runs behind a number: shown beside it, from the list of runs at the page's end, to which its link leads.
const panel = document.getElementById("runs-of");
let asked = null;

function close() {
  panel.hidden = true;
  asked?.focus();
  asked = null;
}

document.addEventListener("click", (event) => {
  const link = event.target.closest("td > a[href^='#r']");
  const row = link && document.getElementById(link.hash.slice(1));
  if (!row || event.ctrlKey || event.metaKey || event.shiftKey) return;
  event.preventDefault();
  asked = link;
  const lines = [...row.cells].map((cell) => {
    const line = document.createElement("p");
    line.append(...cell.cloneNode(true).childNodes);
    return line;
  });
  panel.querySelector("div").replaceChildren(...lines);
  panel.hidden = false;
});
panel.querySelector("button").addEventListener("click", close);
document.addEventListener("keydown", (event) => {
  if (event.key === "Escape" && !panel.hidden) close();
});
