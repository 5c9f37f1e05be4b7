// Class structure -----------------------------------------------------------------------------------------------------

function drawGrid(grid, figures) {
  grid.replaceChildren();
  for (const { title, traces, layout: own } of figures) {
    const cell = document.createElement("div");
    const heading = document.createElement("h3");
    const figure = document.createElement("div");
    heading.innerHTML = title;
    figure.className = "figure";
    figure.dataset.name = `class-structure-${heading.textContent.split(" ").slice(0, 5).join("-")}`;
    figure.setAttribute("role", "figure");
    figure.setAttribute("aria-label", heading.textContent);
    cell.append(heading, figure);
    grid.append(cell);
    const styled = ({ title, ...rest } = {}) => axis(title?.text ?? "", rest);
    show(figure, traces, { margin: { l: narrow() ? 68 : 84, r: 16, t: 12, b: 56 }, ...own, xaxis: styled(own.xaxis), yaxis: styled(own.yaxis) });
  }
}

// A figure has a size only where it is shown: those of a closed part are drawn when it is opened.
const structures = () => [...document.querySelectorAll("[data-structure]")];

function drawStructure(part) {
  if (part.open && window.Plotly) drawGrid(part.querySelector(".grid"), data.structures[Number(part.dataset.structure)]);
}

function drawStructures() {
  const over = element("structures-over");
  if (over && window.Plotly) drawGrid(over, data.structures_over);
  structures().forEach(drawStructure);
}
