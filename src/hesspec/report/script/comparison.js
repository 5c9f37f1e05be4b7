// A comparison: what is shown, and the spectra of all runs on one axis -------------------------------------------------

const initial = () => ({ place: data.first, axis: "log", theme: "" });
const state = initial();
const placeNow = () => data.places[state.place];
const looks = () => (isDark() ? data.looks.dark : data.looks.light);
const fileName = () => fileOf([...data.runs, placeNow().name, state.axis]);

// Positions on the axis: λ itself, or a logarithm of both signs that is linear around 0.
const threshold = () => data.linear * placeNow().largest;
const at = (value) => (state.axis === "linear" ? value : Math.asinh(value / threshold()));
const back = (position) => (state.axis === "linear" ? position : threshold() * Math.sinh(position));

// Ticks of both signs: 0, powers of ten from the largest, then 5 and 2 times these, unless they touch an earlier one.
function signedTicks([low, high], room) {
  const size = Math.max(-back(low), back(high), threshold());
  const top = Math.floor(Math.log10(size));
  const powers = [...Array(8).keys()].map((step) => top - step);
  const sizes = [[1], [5, 2]].flatMap((digits) => powers.flatMap((power) => digits.map((digit) => Number(`${digit}e${power}`))));
  const apart = (high - low) / room;
  const chosen = [];
  for (const value of [0, ...sizes.flatMap((one) => [one, -one])]) {
    const place = at(value);
    if (place >= low && place <= high && chosen.every((other) => Math.abs(at(other) - place) >= apart)) chosen.push(value);
  }
  chosen.sort((a, b) => a - b);
  const full = chosen.every((value) => value === 0 || isShort(Math.abs(value), Math.abs(value)));
  const text = (value) => `${value < 0 ? "−" : ""}${full || value === 0 ? Math.abs(value) : powerText(Math.abs(value))}`;
  return { tickvals: chosen.map(at), ticktext: chosen.map(text) };
}

function curveTrace(spectrum, run) {
  const look = looks()[run];
  return {
    type: "scatter", mode: "lines", name: plain(data.runs[run]), legendgroup: `${run}`,
    x: spectrum.x.map(at), y: spectrum.y, customdata: spectrum.x, fill: "tozeroy", fillcolor: look.area, line: look.line,
    hovertemplate: `bulk of ${plain(data.runs[run])}<br>λ = %{customdata:.3g}<br>share of eigenvalues per unit of λ: %{y:.3g}<extra></extra>`,
  };
}

function pointsTrace(spectrum, run, outliers) {
  const look = looks()[run];
  const kept = spectrum.values.map((_, index) => index).filter((i) => spectrum.outlier[i] === outliers);
  const name = `${kept.length} outlier${kept.length === 1 ? "" : "s"}${spectrum.matrix ? ` of ${spectrum.matrix}` : ""}`;
  const ends = (sign) => kept.map((i) => Math.abs(at(spectrum.values[i] + sign * (spectrum.bounds[i] ?? 0)) - at(spectrum.values[i])));
  return {
    type: "scatter", mode: "markers", legendgroup: `${run}`, name: plain(name), showlegend: outliers && kept.length > 0,
    x: kept.map((i) => at(spectrum.values[i])),
    y: kept.map(() => placeNow().floor / data.stagger ** run),
    hoverinfo: "text",
    hovertext: kept.map((i) => {
      const [value, bound] = spectrum.texts[i];
      return [`<b>λ = ${value}</b>`, `error at most ${bound}`, outliers ? "outlier" : "resolved, in the bulk", plain(data.runs[run])].join("<br>");
    }),
    ...(outliers
      ? { error_x: { type: "data", symmetric: false, array: ends(1), arrayminus: ends(-1), color: look.dark, thickness: 1.4, width: 4 } }
      : {}),
    marker: {
      symbol: spectrum.symbol, size: outliers ? 10 : 5, color: outliers ? look.dark : look.light,
      line: { color: colour("paper"), width: outliers ? 1 : 0 },
    },
  };
}

function drawSpectra() {
  const figure = element("spectrum");
  const { spectra, floor } = placeNow();
  const marks = spectra.flatMap(({ x, values }) => [...x, ...values]).map(at);
  const range = padded(Math.min(least(marks), 0), Math.max(most(marks), 0), 0.04);
  const peak = Math.max(most(spectra.flatMap(({ y }) => y)), 10 * floor);
  const ticks = state.axis === "linear" ? {} : { tickmode: "array", ...signedTicks(range, roomOf("x", figure.clientWidth - 110)) };
  const heights = [Math.log10(floor / data.stagger ** (spectra.length - 0.5)), Math.log10(3 * peak)];
  show(
    figure,
    [...spectra.map(curveTrace), ...[false, true].flatMap((outliers) => spectra.map((one, run) => pointsTrace(one, run, outliers)))],
    {
      xaxis: axis(EIGENVALUE(spectra), { range, zeroline: true, ...ticks }),
      yaxis: axis(narrow() ? "share per unit of λ" : "bulk: share of eigenvalues per unit of λ", { type: "log", range: heights }),
    },
  );
}

// Ticks of the part that is zoomed to.
function followZoom() {
  const figure = element("spectrum");
  figure.on("plotly_relayout", (change) => {
    if (state.axis === "linear" || !Object.keys(change).some((key) => /^xaxis\.(range|autorange)/.test(key))) return;
    const { range, _length } = figure._fullLayout.xaxis;
    const { tickvals, ticktext } = signedTicks(range.map(Number), roomOf("x", _length));
    if (JSON.stringify(tickvals) === JSON.stringify(figure.layout.xaxis.tickvals)) return;
    Plotly.relayout(figure, { "xaxis.tickvals": tickvals, "xaxis.ticktext": ticktext });
  });
}

function draw() {
  showTheme();
  element("headline").textContent = `${placeNow().sentence}.`;
  element("place").value = `${state.place}`;
  for (const title of document.querySelectorAll(".place")) title.textContent = data.places.length > 1 ? `, ${placeNow().name}` : "";
  for (const part of document.querySelectorAll("[data-place]")) part.hidden = part.dataset.place !== `${state.place}`;
  for (const row of document.querySelectorAll("[data-at]")) row.classList.toggle("now", row.dataset.at === `${state.place}`);
  for (const input of element("axes").querySelectorAll("input")) input.checked = input.value === state.axis;
  drawSpectra();
  showScrolls();
}

function address() {
  const words = new URLSearchParams();
  if (data.places.length > 1) words.set("place", state.place);
  words.set("axis", state.axis);
  if (state.theme) words.set("theme", state.theme);
  return `#${words}`;
}

function restore(hash) {
  const words = new URLSearchParams(hash.replace(/^#/, ""));
  const kept = keptTheme();
  const theme = words.get("theme") ?? kept;
  const place = Number(words.get("place") ?? data.first);
  Object.assign(state, initial(), {
    place: data.places[place] ? place : data.first,
    axis: words.get("axis") === "linear" ? "linear" : "log",
    theme: THEMES.includes(theme) ? theme : "",
  });
}

function changed() {
  draw();
  record();
}

function react() {
  element("controls").addEventListener("submit", (event) => event.preventDefault());
  element("place").addEventListener("change", (event) => {
    state.place = Number(event.target.value);
    changed();
  });
  for (const input of element("axes").querySelectorAll("input")) {
    input.addEventListener("change", () => {
      state.axis = input.value;
      changed();
    });
  }
  fillTheme(() => {
    draw();
    record(true);
  });
  fillContents();
  fillDownloads((name) => data.files[name]);
  addEventListener("hashchange", () => {
    if (location.hash === recorded || !isView(location.hash)) return;
    const chosen = element("overview")?.contains(document.activeElement);
    recorded = location.hash;
    restore(location.hash);
    draw();
    if (chosen) element("spectra-title").closest("section").scrollIntoView();
  });
  followScreen(draw);
  followPaper(draw);
}

async function start() {
  if (isView(location.hash)) restore(location.hash);
  react();
  draw(); // what needs no figures is here at once
  if (!(await unpackPlotly())) return;
  draw();
  followZoom();
  document.documentElement.dataset.drawn = "yes";
}

start();
