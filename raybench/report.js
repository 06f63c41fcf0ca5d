"use strict";
const collator = new Intl.Collator("en", {numeric: true});

// A table can be sorted by each of its columns: numbers as numbers, and rows without a value last.
for (const table of document.querySelectorAll("table")) {
  const body = table.tBodies[0];
  const heads = table.tHead ? [...table.tHead.rows[table.tHead.rows.length - 1].cells] : [];
  heads.forEach((head, column) => {
    const numbers = head.classList.contains("right");
    const value = row => {
      const cell = row.cells[column];
      if (numbers) return cell.dataset.value === undefined ? null : Number(cell.dataset.value);
      return cell.textContent === "–" ? null : cell.textContent;
    };
    const button = document.createElement("button");
    button.type = "button";
    button.append(...head.childNodes);
    head.append(button);
    button.addEventListener("click", () => {
      const order = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      heads.forEach(other => other.removeAttribute("aria-sort"));
      head.setAttribute("aria-sort", order > 0 ? "ascending" : "descending");
      const rows = [...body.rows];
      const there = rows.filter(row => value(row) !== null);
      const compare = numbers ? (a, b) => a - b : collator.compare;
      there.sort((a, b) => order * compare(value(a), value(b)));
      body.append(...there, ...rows.filter(row => value(row) === null));
    });
  });
}

const rows = [...document.querySelectorAll("table.trials tbody tr")];
const filter = document.getElementById("filter");
filter.addEventListener("input", () => {
  const words = filter.value.toLowerCase().split(/\s+/);
  for (const row of rows) {
    const text = [...row.cells].map(cell => cell.textContent).join("\n").toLowerCase();
    row.hidden = !words.every(word => text.includes(word));
  }
  const left = rows.filter(row => !row.hidden).length;
  document.getElementById("shown").value = `${left} of ${rows.length} trials`;
});

// What is folded is printed too.
addEventListener("beforeprint", () => document.querySelectorAll("details").forEach(part => { part.open = true; }));
