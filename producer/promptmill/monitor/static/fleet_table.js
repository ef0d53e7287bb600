// A table whose cells are updated in place, so that neither focus nor a selection is lost at each look.
"use strict";

class FleetTable {
  // columns: {label, value(row), format, isNumber, isShort, isWide, state(row), link(row)}; one whose value is undefined
  // in all rows isn't shown.
  constructor(id, columns, key, empty) {
    this.columns = columns;
    this.key = key;
    this.empty = empty;
    this.rows = new Map();
    const table = document.getElementById(id);
    const head = table.createTHead().insertRow();
    this.heads = columns.map((column) => {
      const cell = document.createElement("th");
      cell.scope = "col";
      cell.textContent = column.label;
      cell.className = FleetTable.classOf(column);
      return head.appendChild(cell);
    });
    this.body = table.createTBody();
  }

  static classOf(column) {
    if (column.isNumber) return "is-number";
    if (column.isShort) return "is-short";
    return column.isWide ? "is-wide" : "";
  }

  show(rows) {
    const shown = new Map(rows.map((row) => [this.key(row), row]));
    for (const [key, line] of this.rows) {
      if (!shown.has(key)) {
        line.remove();
        this.rows.delete(key);
      }
    }
    const isShown = this.columns.map((column) => rows.some((row) => column.value(row) !== undefined));
    this.heads.forEach((head, index) => (head.hidden = rows.length > 0 && !isShown[index]));
    for (const [key, row] of shown) {
      if (!this.rows.has(key)) this.rows.set(key, this.insert());
      this.update(this.rows.get(key), row, isShown);
      this.body.appendChild(this.rows.get(key));
    }
    this.showEmpty(rows.length === 0);
  }

  insert() {
    const line = document.createElement("tr");
    for (const column of this.columns) {
      const cell = line.insertCell();
      cell.dataset.label = column.label;
      cell.appendChild(document.createElement(column.link ? "a" : "span"));
    }
    return line;
  }

  update(line, row, isShown) {
    this.columns.forEach((column, index) => {
      const cell = line.cells[index];
      const value = column.value(row);
      const text = value === undefined || value === null ? "—" : column.format ? column.format(value) : String(value);
      if (cell.firstChild.textContent !== text) cell.firstChild.textContent = text;
      cell.hidden = !isShown[index];
      cell.className = `${FleetTable.classOf(column)} ${column.state?.(row) ?? ""}`.trim();
      const target = column.link?.(row);
      if (target) cell.firstChild.setAttribute("href", target);
      else if (column.link) cell.firstChild.removeAttribute("href");
    });
  }

  showEmpty(isEmpty) {
    if (isEmpty && !this.emptyRow) {
      this.emptyRow = document.createElement("tr");
      const cell = this.emptyRow.insertCell();
      cell.colSpan = this.columns.length;
      cell.className = "is-empty";
      cell.textContent = this.empty;
      this.body.appendChild(this.emptyRow);
    } else if (!isEmpty && this.emptyRow) {
      this.emptyRow.remove();
      this.emptyRow = null;
    }
  }
}
