// Asks the address of this page for its JSON form again and again, and shows it. What may have come
// from an exporter only ever becomes text: nothing here makes markup out of a string.

const POLL_MS = 5000;
const POLL_MS_PER_EXPORTER = 10; // a thousand exporters are a megabyte
const TIMEOUT_MS = 10000;
const SVG = "http://www.w3.org/2000/svg";
const BAR_WIDTH = 4;
const HEIGHT = 28;
const BARS = 40;

const COLUMNS = ["state", "last scrape", "duration", "size", "last hour", "recent scrapes"];

const byId = (id) => document.getElementById(id);
const rows = new Map();
// A URL with a password in it, as the address bar may have, cannot be fetched.
const address = location.origin + location.pathname;
let isPaused = false;
let timer = 0;

// -- Elements

function element(name, properties = {}, children = []) {
  const made = document.createElement(name);
  for (const [key, value] of Object.entries(properties)) {
    if (key in made) made[key] = value;
    else made.setAttribute(key, value);
  }
  made.append(...children);
  return made;
}

function setText(node, text) {
  if (node.textContent !== text) node.textContent = text; // an unchanged text is not announced again
}

function setLink(node, href) {
  const target = new URL(href, address);
  if (target.origin === location.origin) node.href = target.href;
}

// -- Numbers for people

function ago(then, now) {
  const seconds = Math.max(0, (Date.parse(now) - Date.parse(then)) / 1000);
  for (const [unit, length] of [["d", 86400], ["h", 3600], ["min", 60]]) {
    if (seconds >= 2 * length) return `${Math.floor(seconds / length)} ${unit} ago`;
  }
  return `${Math.round(seconds)} s ago`;
}

function duration(seconds) {
  if (seconds >= 1) return `${seconds.toFixed(1)} s`;
  return `${(seconds * 1000).toFixed(seconds >= 0.01 ? 0 : 1)} ms`;
}

function size(bytes) {
  for (const [unit, length] of [["MiB", 2 ** 20], ["KiB", 2 ** 10]]) {
    if (bytes >= length) return `${(bytes / length).toFixed(1)} ${unit}`;
  }
  return `${bytes} B`;
}

function share(hour) {
  if (hour.succeeded === hour.scrapes) return "100 %"; // and only then
  if (hour.succeeded === 0) return "0 %";
  return `${(Math.floor((hour.succeeded * 1000) / hour.scrapes) / 10).toFixed(1)} %`;
}

const plural = (count, one, many) => (count === 1 ? `1 ${one}` : `${count} ${many}`);
const isFailed = (scrape) => scrape.reason !== null || scrape.status !== 200;

// -- One exporter

function bar(x, y, height, name) {
  const made = document.createElementNS(SVG, "rect");
  const attributes = { x, y, width: BAR_WIDTH - 1, height, class: name };
  for (const [key, value] of Object.entries(attributes)) made.setAttribute(key, value);
  return made;
}

// Recent scrapes from left to right, the newest at the right; the tallest took longest. A failed one
// has the shape of an exclamation mark: colour alone would not do for everybody.
function picture(recent) {
  const longest = Math.max(0.001, ...recent.map((scrape) => scrape.seconds));
  const svg = document.createElementNS(SVG, "svg");
  svg.setAttribute("viewBox", `0 0 ${BARS * BAR_WIDTH} ${HEIGHT}`);
  svg.setAttribute("preserveAspectRatio", "none");
  svg.setAttribute("role", "img");
  const title = document.createElementNS(SVG, "title");
  title.textContent = pictureInWords(recent);
  const axis = document.createElementNS(SVG, "path");
  axis.setAttribute("d", `M0 ${HEIGHT - 0.5}H${BARS * BAR_WIDTH}`);
  axis.setAttribute("class", "axis");
  svg.append(title, axis);
  recent.forEach((scrape, index) => {
    const x = (BARS - recent.length + index) * BAR_WIDTH;
    if (isFailed(scrape)) {
      svg.append(bar(x, 0, HEIGHT - 9, "bar-failed"), bar(x, HEIGHT - 5, 4, "bar-failed"));
    } else {
      const height = Math.max(2, (HEIGHT - 2) * (scrape.seconds / longest));
      svg.append(bar(x, HEIGHT - 1 - height, height, "bar"));
    }
  });
  return svg;
}

function pictureInWords(recent) {
  const failed = recent.filter(isFailed).length;
  const times = recent.filter((scrape) => !isFailed(scrape)).map((scrape) => scrape.seconds);
  const words = [plural(recent.length, "recent scrape", "recent scrapes"), `${failed} failed`];
  if (times.length) words.push(`took ${duration(Math.min(...times))} to ${duration(Math.max(...times))}`);
  return words.join(", ");
}

function newRow(name) {
  const link = element("a", { textContent: name });
  const path = element("small");
  const badge = element("span", { className: "badge" });
  const cells = COLUMNS.map((label, index) =>
    element("td", {
      role: "cell",
      className: index === 0 ? "state" : index === COLUMNS.length - 1 ? "picture" : "number",
      ...(index === 0 ? {} : { "data-label": label }),
    }),
  );
  cells[0].append(badge);
  const header = element("th", { scope: "row", role: "rowheader" }, [link, path]);
  const main = element("tr", { role: "row" }, [header, ...cells]);
  const message = element("div", { className: "message" });
  const cell = element("td", { role: "cell", colSpan: COLUMNS.length + 1 }, [message]);
  const failure = element("tr", { role: "row", className: "failure", hidden: true }, [cell]);
  return { main, failure, link, path, badge, cells, message, pictured: "", failed: "" };
}

function showExporter(row, exporter, now) {
  setLink(row.link, exporter.link);
  setText(row.path, exporter.path);
  const state = exporter.is_slow ? "slow" : exporter.state;
  setText(row.badge, state);
  row.main.classList.toggle("never-scraped", exporter.last_scrape === null);
  row.badge.className = `badge ${state === "never scraped" ? "unknown" : state}`;
  const [, at, took, bytes, hour, recent] = row.cells;
  const last = exporter.last_scrape;
  setText(at, last ? ago(last.at, now) : "\u2013");
  at.title = last ? last.at : "";
  setText(took, last ? duration(last.seconds) : "\u2013");
  setText(bytes, last ? size(last.bytes) : "\u2013");
  const { scrapes, succeeded } = exporter.last_hour;
  setText(hour, scrapes ? share(exporter.last_hour) : "\u2013");
  if (exporter.is_slow) {
    took.append(element("small", { textContent: `of ${duration(last.timeout_seconds)}` }));
  }
  if (scrapes) hour.append(element("small", { textContent: `${succeeded} of ${scrapes}` }));
  const pictured = JSON.stringify(exporter.recent);
  if (pictured !== row.pictured) {
    recent.replaceChildren(...(exporter.recent.length ? [picture(exporter.recent)] : ["\u2013"]));
    row.pictured = pictured;
  }
  showFailure(row, exporter, now);
}

function showFailure(row, exporter, now) {
  const failure = exporter.failure;
  row.failure.hidden = failure === null;
  const since = exporter.last_success;
  const success = since ? `last success ${ago(since, now)}` : "never succeeded";
  const failed = JSON.stringify([failure, success]);
  if (failure === null || failed === row.failed) return;
  row.failed = failed;
  row.message.className = exporter.state === "down" ? "message" : "message passed";
  const said = element("bdi", { textContent: failure.message });
  const first = element("p", {}, [element("strong", { textContent: failure.reason }), ": ", said]);
  const lines = [first];
  if (failure.excerpt) {
    lines.push(element("p", {}, [element("code", {}, [element("bdi", { textContent: failure.excerpt })])]));
  }
  const rest = [failure.advice, success].filter(Boolean).join("; ");
  lines.push(element("p", {}, [element("small", { textContent: rest })]));
  row.message.replaceChildren(...lines);
}

// -- The whole page

function showExporters(data) {
  const body = byId("exporters").tBodies[0];
  const names = data.exporters.map((exporter) => exporter.name);
  if (names.join() !== [...rows.keys()].join()) {
    const old = new Map(rows);
    rows.clear();
    for (const name of names) rows.set(name, old.get(name) ?? newRow(name));
    body.replaceChildren(...[...rows.values()].flatMap((row) => [row.main, row.failure]));
  }
  for (const exporter of data.exporters) showExporter(rows.get(exporter.name), exporter, data.now);
  byId("exporters").hidden = names.length === 0;
}

function certificateLine(certificate) {
  const until = `${certificate.kind}: until ${certificate.not_after.slice(0, 10)}`;
  if (certificate.days_left < 0) return `${until}, expired`;
  return `${until}, ${plural(certificate.days_left, "day", "days")} left`;
}

function pushproxClass(proxy) {
  return { connected: "up", failing: "down" }[proxy.state] ?? "unknown";
}

function daemonFacts(daemon, now) {
  const { config, last_reload: reload } = daemon;
  const list = (texts) => element("ul", {}, texts.map((text) => element("li", { textContent: text })));
  const problems = plural(reload.problem_count, "problem", "problems");
  const loaded = `${ago(config.loaded, now)} (${config.loaded.slice(0, 19)}Z)`;
  const facts = [
    ["Version", [daemon.version]],
    ["Configuration", [`${config.source}, loaded ${loaded}`]],
    ["Its hash", [element("code", { textContent: config.hash.slice(0, 12), title: config.hash })]],
    [
      "Last reload",
      reload.is_successful ? ["succeeded"] : [
        element("span", { className: "badge down", textContent: "failed" }),
        ` ${problems}; what was loaded before stays in use`,
        ...(reload.problems.length ? [list(reload.problems)] : []),
      ],
    ],
    ["Connections", [`${daemon.connections} of at most ${daemon.max_connections}`]],
  ];
  for (const proxy of daemon.pushprox) {
    const line = `${proxy.url} as ${proxy.fqdn}, ${ago(proxy.since, now)}`;
    const badge = element("span", { className: `badge ${pushproxClass(proxy)}`, textContent: proxy.state });
    facts.push(["PushProx", [badge, ` ${line}`, ...(proxy.problem ? [list([proxy.problem])] : [])]]);
  }
  for (const certificate of daemon.certificates) {
    const line = certificateLine(certificate);
    const due = element("span", { className: "badge down", textContent: "renew" });
    facts.push(["Certificate", certificate.is_due ? [due, ` ${line}`] : [line]]);
  }
  return facts;
}

function showDaemon(daemon, now) {
  setLink(byId("metrics"), daemon.links.metrics);
  setLink(byId("scrapes"), daemon.links.exporters);
  setLink(byId("targets"), daemon.links.targets);
  const facts = daemonFacts(daemon, now).flatMap(([term, value]) => [
    element("dt", { textContent: term }),
    element("dd", {}, value),
  ]);
  byId("daemon").hidden = false;
  byId("daemon").querySelector("dl").replaceChildren(...facts);
}

function severity(data) {
  const { daemon, exporters } = data;
  const isDue = daemon.certificates.some((certificate) => certificate.is_due);
  if (exporters.some((one) => one.state === "down") || !daemon.last_reload.is_successful) return "down";
  if (daemon.pushprox.some((one) => one.state === "failing")) return "down";
  if (isDue || daemon.is_stopping || exporters.some((one) => one.is_slow)) return "slow";
  return exporters.some((one) => one.state === "up") ? "up" : "unknown";
}

function show(data) {
  setText(byId("summary"), data.summary);
  byId("summary").className = severity(data);
  showExporters(data);
  showDaemon(data.daemon, data.now);
  const failing = data.exporters.filter((one) => one.state === "down").length;
  document.title = `${failing ? `${failing} down \u2013 ` : ""}${location.host} \u2013 exporter_proxy`;
  setText(byId("updated"), `Updated ${new Date().toLocaleTimeString()}`);
}

async function ask() {
  const answer = await fetch(address, {
    headers: { Accept: "application/json" },
    cache: "no-store",
    redirect: "manual",
    signal: AbortSignal.timeout(TIMEOUT_MS),
  });
  const isJson = (answer.headers.get("Content-Type") ?? "").startsWith("application/json");
  if (answer.ok && isJson) return answer.json();
  if (answer.status === 0 || answer.ok || answer.status === 401) {
    throw new Error("You may have been signed out: reload this page.");
  }
  throw new Error(`The answer was ${answer.status}; trying again.`);
}

// What was known stays to be seen, but no green promises that it is still so.
function showTrouble(text) {
  setText(byId("trouble"), text);
  byId("trouble").hidden = text === "";
  if (text) byId("summary").className = "unknown";
}

// The data, or else why there is none.
async function tryToAsk() {
  try {
    return [await ask(), ""];
  } catch (error) {
    const isUnanswered = error instanceof TypeError || error.name === "TimeoutError";
    return [null, isUnanswered ? "exporter_proxy does not answer; trying again." : error.message];
  }
}

async function poll() {
  clearTimeout(timer);
  const [data, why] = await tryToAsk();
  showTrouble(why && `What is shown here is out of date. ${why}`);
  if (data) show(data);
  clearTimeout(timer); // another one may have begun meanwhile
  const pause = POLL_MS + POLL_MS_PER_EXPORTER * rows.size;
  if (!isPaused && !document.hidden) timer = setTimeout(poll, pause);
}

byId("host").textContent = location.host;
byId("pause").hidden = false;
byId("pause").addEventListener("click", () => {
  isPaused = !isPaused;
  byId("pause").setAttribute("aria-pressed", String(isPaused));
  clearTimeout(timer);
  if (!isPaused) poll();
});
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && !isPaused) poll();
});
poll();
