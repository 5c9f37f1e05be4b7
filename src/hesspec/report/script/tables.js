// Tables --------------------------------------------------------------------------------------------------------------

function addCells(row, texts, numbersFrom) {
  texts.forEach((text, index) => {
    const cell = document.createElement(index < numbersFrom ? "th" : "td");
    if (index < numbersFrom) cell.scope = "row";
    else cell.className = "number";
    cell.textContent = text;
    row.append(cell);
  });
  return row;
}

function fillTable(table, rows, otherwise) {
  const body = table.tBodies[0];
  body.replaceChildren(...rows.map((texts) => addCells(document.createElement("tr"), texts, 1)));
  if (!rows.length) body.insertRow().insertCell().textContent = otherwise;
  if (!rows.length) body.rows[0].cells[0].colSpan = table.tHead.rows[0].cells.length;
}

function outlierTable(item) {
  const table = element("outlier-table").content.firstElementChild.cloneNode(true);
  table.caption.firstElementChild.textContent = item.title;
  table.caption.lastElementChild.textContent = data.runs.length > 1 ? item.run : "";
  const rows = item.texts.filter((_, i) => item.ranks[i]).map(([value, bound], k) => [`${k + 1}`, value, bound]);
  fillTable(table, rows, "no outliers");
  return table;
}

function fillTables(members) {
  const [some, none] = [members.filter((item) => item.count), members.filter((item) => !item.count)];
  element("outlier-tables").replaceChildren(...some.map(outlierTable));
  const words = (item) => (compared() ? nameOf(item) : item.title);
  element("outlier-none").textContent = none.length ? `No outliers: ${none.map(words).join("; ")}.` : "";
  fillTable(element("glance"), members.map((item) => [compared() ? named([item.run, item.title]) : item.title, ...item.glance]), "nothing is shown");
  showScrolls();
}

// What the figures draw is written as a table here: a text of its own would double what the page holds of it.
const CURVES = [["linear", "per unit of eigenvalue"], ["log", "per decade of magnitude"]];
const TABLES = {
  "density.csv": () => [
    [...data.columns, "axis", "abscissa", "density", "unit"],
    ...data.spectra.flatMap((item) =>
      CURVES.flatMap(([kind, unit]) => item[kind][0].map((x, i) => [...item.place, kind, x, item[kind][1][i], unit])),
    ),
  ],
  "resolved.csv": () => [
    [...data.columns, "eigenvalue", "error_bound", "weight", "outlier_rank"],
    ...data.spectra.flatMap((item) =>
      item.values.map((value, i) => [...item.place, value, item.bounds[i], item.heights?.[i] ?? item.floor, item.ranks[i] || null]),
    ),
  ],
  "overlaps.csv": () => [
    [...data.columns.map((name) => (name === "file" ? "hess_file" : name)), "g_file", "hess_outlier", "g_outlier", "squared_overlap"],
    ...data.pairs.flatMap(({ hess, g, overlaps }) =>
      (overlaps ?? []).flatMap((row, i) =>
        row.map((part, j) => [...data.spectra[hess].place, data.spectra[g].place.at(-1), i + 1, j + 1, part]),
      ),
    ),
  ],
};
// A text that a spreadsheet would run as a formula is marked as a text by an apostrophe.
const isNumber = (text) => text.trim() !== "" && !Number.isNaN(Number(text));
const runs = (text) => /^[\t\r\n]/.test(text) || (/^\s*[=+\-@＝＋－＠]/.test(text) && !isNumber(text));
const harmless = (value) => (typeof value === "string" && runs(value) ? `'${value}` : `${value ?? ""}`);
const quoted = (text) => (/[",\r\n]/.test(text) ? `"${text.replaceAll('"', '""')}"` : text);
const cellText = (value) => quoted(harmless(value));
const written = (rows) => rows.map((row) => `${row.map(cellText).join(",")}\r\n`).join("");

fillDownloads((name) => data.files[name] ?? written(TABLES[name]()), TABLES);
