// Common to all figures ------------------------------------------------------------------------------------------------

const narrow = () => innerWidth < 700;

// A name of a file from words that say what it shows.
const fileOf = (parts) => ["hesspec", ...parts].join("-").replace(/[^A-Za-z0-9._+=-]+/g, "_").replace(/_*-+_*/g, "-").slice(0, 120);

const CONFIG = {
  responsive: true,
  displaylogo: false,
  // A list of what there is, not of what there is not: plotly.js 4 adds a button that sends the data to a server.
  modeBarButtons: [["download", "zoom2d", "pan2d", "resetScale2d"]],
};

// The list names the button above once Plotly is here, which has its picture.
function fillConfig() {
  const download = {
    name: "download",
    title: "Download plot",
    icon: Plotly.Icons.camera,
    click: (figure) => Plotly.downloadImage(figure, { format: "svg", filename: fileName(figure) }),
  };
  CONFIG.modeBarButtons[0][0] = download;
}

const axis = (title, rest) => ({
  title: { text: title, standoff: 8, font: { size: narrow() ? 13 : 14 } },
  showline: true,
  linecolor: colour("soft"),
  ticks: "outside",
  tickcolor: colour("soft"),
  gridcolor: colour("grid"),
  zeroline: false,
  zerolinecolor: colour("soft"),
  exponentformat: "power",
  showexponent: "all",
  automargin: true, // labels are longer on some axes than the margin allows for
  ...rest,
});

// Titles of axes of eigenvalues, with the unit that all spectra have; of a matrix that is no curvature of a loss it is not known.
const withUnit = (quantity, spectra) => {
  const units = distinct(spectra.map(({ unit }) => unit));
  return narrow() || units.length !== 1 || !units[0] ? quantity : `${quantity}  (${units[0]})`;
};
const EIGENVALUE = (spectra) => withUnit("eigenvalue λ", spectra);
const MAGNITUDE = (spectra) => withUnit("|λ|", spectra);

// Ticks of logarithmic axes are numbers of one size: 2, 5, 10, 20, or powers of ten where there are many decades.
const SUPERSCRIPTS = "⁰¹²³⁴⁵⁶⁷⁸⁹";
const raised = (power) => `${power < 0 ? "⁻" : ""}${[...`${Math.abs(power)}`].map((digit) => SUPERSCRIPTS[digit]).join("")}`;
function powerText(value) {
  const power = Math.floor(Math.log10(value) + 1e-9);
  const first = Number((value / 10 ** power).toPrecision(4));
  return first === 1 ? `10${raised(power)}` : `${first}·10${raised(power)}`;
}

function niceStep(rough) {
  const power = 10 ** Math.floor(Math.log10(rough));
  return [1, 2, 5, 10].map((digit) => digit * power).find((step) => step >= rough * (1 - 1e-9));
}

function evenTicks(low, high, count) {
  const step = niceStep((high - low) / Math.max(count, 1));
  const first = Math.ceil(low / step - 1e-9);
  const last = Math.floor(high / step + 1e-9);
  return [...Array(Math.max(last - first + 1, 0)).keys()].map((index) => Number(((first + index) * step).toPrecision(12)));
}

// Numbers that are short enough to be written in full; of others only powers of ten are, where there are two.
const isShort = (low, high) => low >= 9.99e-4 && high < 1e5;

function logTicks([low, high], room) {
  const [first, last] = [Math.ceil(low - 1e-9), Math.floor(high + 1e-9)];
  const decades = [...Array(Math.max(last - first + 1, 0)).keys()].map((index) => first + index);
  const inside = (value) => Math.log10(value) >= low - 1e-9 && Math.log10(value) <= high + 1e-9;
  let values;
  if (high - low < 0.5) values = evenTicks(10 ** low, 10 ** high, Math.min(room, 6)).filter((value) => value > 0);
  else if ((3 * (high - low) <= room && isShort(10 ** low, 10 ** high)) || decades.length < 2) {
    values = [first - 1, ...decades].flatMap((power) => [1, 2, 5].map((digit) => Number(`${digit}e${power}`))).filter(inside);
  } else {
    const every = Math.ceil(decades.length / Math.max(room, 2));
    const even = decades.filter((power) => power % every === 0);
    const shown = even.length > 1 ? even : decades.filter((_, index) => index % every === 0);
    values = shown.map((power) => Number(`1e${power}`));
  }
  const full = isShort(least(values), most(values));
  return { tickvals: values, ticktext: values.map((value) => (full ? `${Number(value.toPrecision(6))}` : powerText(value))) };
}

// Labels of an axis that have room without touching: lines of 14 px on y, numbers of 5 letters on x.
const roomOf = (name, length) => length / (name.startsWith("y") ? 30 : 54);

function logRange(values) {
  const known = values.flat().filter((value) => Number.isFinite(value) && value > 0).map(Math.log10);
  return known.length ? padded(least(known), most(known), 0.06) : [-1, 1];
}

// Epochs are whole numbers: so are their ticks.
function epochAxis(epochs, rest) {
  const [low, high] = [least(epochs), most(epochs)];
  const whole = epochs.length && epochs.every(Number.isInteger);
  return axis("epoch", whole ? { tickmode: "linear", tick0: 0, dtick: Math.max(1, niceStep((high - low || 1) / 8)), ...rest } : rest);
}

function layout(rest) {
  const paper = colour("paper");
  return {
    margin: narrow() ? { l: 60, r: 12, t: 12, b: 52 } : { l: 96, r: 24, t: 12, b: 58 },
    font: { family: getComputedStyle(document.body).fontFamily, size: narrow() ? 12 : 14, color: colour("ink") },
    paper_bgcolor: paper,
    plot_bgcolor: paper,
    hovermode: "closest",
    hoverlabel: { bgcolor: paper, bordercolor: colour("soft"), align: "left", font: { size: 13, color: colour("ink") } },
    legend: {
      orientation: "h", x: 0, xanchor: "left", y: 1.02, yanchor: "bottom", itemclick: false, itemdoubleclick: false,
      bgcolor: "rgba(0,0,0,0)", maxheight: 0.9,
    },
    ...rest,
  };
}

function padded(low, high, share) {
  const margin = (high - low || Math.abs(high) || 1) * share;
  return [low - margin, high + margin];
}

const message = (text) => ({ text, xref: "paper", yref: "paper", x: 0.5, y: 0.5, showarrow: false, font: { size: narrow() ? 13 : 16 } });
const axesOf = (whole) => Object.keys(whole).filter((name) => /^[xy]axis\d*$/.test(name));

// Draw a figure, with ranges and ticks of its logarithmic axes, which follow when it is zoomed.
function show(figure, traces, rest) {
  if (!window.Plotly) return;
  const whole = layout(rest);
  for (const name of axesOf(whole).filter((key) => whole[key].type === "log")) {
    const own = whole[name];
    const id = name.replace("axis", "");
    own.range ??= logRange(traces.filter((trace) => (trace[`${name[0]}axis`] ?? name[0]) === id).map((trace) => trace[name[0]] ?? []));
    const length = name.startsWith("y") ? figure.clientHeight - 110 : figure.clientWidth - 110;
    const [from, to] = own.domain ?? [0, 1];
    if (!own.tickvals) Object.assign(own, logTicks(own.range, roomOf(name, (to - from) * length)));
    own.tickmode = "array";
  }
  Plotly.react(figure, traces, whole, CONFIG);
  if (figure.dataset.follows) return;
  figure.dataset.follows = "yes";
  figure.on("plotly_relayout", (change) => {
    if (Object.keys(change).some((key) => /^[xy]axis\d*\.(range|autorange)/.test(key))) followTicks(figure);
  });
}

function followTicks(figure) {
  const change = {};
  for (const name of axesOf(figure.layout).filter((key) => figure.layout[key].type === "log" && figure.dataset.ticks !== "fixed")) {
    const { range, _length } = figure._fullLayout[name];
    const { tickvals, ticktext } = logTicks(range.map(Number), roomOf(name, _length));
    if (JSON.stringify(tickvals) === JSON.stringify(figure.layout[name].tickvals)) continue;
    Object.assign(change, { [`${name}.tickvals`]: tickvals, [`${name}.ticktext`]: ticktext });
  }
  if (Object.keys(change).length) Plotly.relayout(figure, change);
}
