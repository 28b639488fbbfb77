// Keeps the page up to date: cars arrive as HTML over server-sent events, also when an estimate has moved, and
// times run on by the daemon's clock, which in time-lapse is faster than the wall's. Without this file the page
// still works.
"use strict";

const clock = document.getElementById("clock");
let epoch = { now: Date.parse(clock.dateTime), at: performance.now(), speed: Number(clock.dataset.speed) };

function now() {
  return epoch.now + (performance.now() - epoch.at) * epoch.speed;
}

// The same words as cadence.words.
function words(seconds) {
  seconds = Math.max(Math.round(seconds), 0);
  if (seconds < 90) return `${seconds} s`;
  const minutes = Math.round(seconds / 60);
  if (minutes < 60) return `${minutes} min`;
  if (minutes < 48 * 60) return pair(minutes, 60, "h", "min");
  return pair(Math.round(minutes / 60), 24, "d", "h");
}

function pair(count, per, large, small) {
  const rest = count % per;
  return `${Math.floor(count / per)} ${large}` + (rest ? ` ${rest} ${small}` : "");
}

// The same as view.ago, view.ahead and view.lasting.
const spelled = {
  ago: (past) => (past < 1 ? "just now" : `${words(past)} ago`),
  ahead: (past) => (past < 0 ? `in ${words(-past)}` : past <= 300 ? "now" : `overdue by ${words(past)}`),
  lasting: (past) => `for ${words(past)}`,
};

function tick() {
  const at = now();
  say(clock, new Date(at).toISOString().slice(0, 19).replace("T", " ") + " UTC");
  for (const time of document.querySelectorAll("time[data-words]")) {
    say(time, spelled[time.dataset.words]((at - Date.parse(time.dateTime)) / 1000));
  }
  // Nothing is claimed for longer, whether or not the daemon can still say so.
  for (const claim of document.querySelectorAll("[data-until]")) {
    claim.toggleAttribute("hidden", at >= Date.parse(claim.dataset.until));
  }
}

function say(element, text) {
  if (element.textContent !== text) element.textContent = text;
}

function rows() {
  return [...document.querySelectorAll("[data-vehicle]")];
}

function replaceRow(html) {
  const holder = document.createElement("template");
  holder.innerHTML = html;
  const fresh = holder.content.querySelector("[data-vehicle]");
  const old = rows().find((row) => row.dataset.vehicle === fresh.dataset.vehicle);
  if (!old) return;
  const soc = (row) => row.querySelector(".soc").textContent;
  fresh.classList.toggle("changed", soc(old) !== soc(fresh));
  old.replaceWith(fresh);
  if (old.dataset.freshness !== fresh.dataset.freshness) refresh();
}

// Numbers, order and which cars there are: all of it anew, at most every five seconds.
let refreshed = -Infinity;
let refreshing = false;
function refresh() {
  if (refreshing) return;
  refreshing = true;
  setTimeout(async () => {
    try {
      const answer = await fetch(location.href);
      if (answer.ok) swap(new DOMParser().parseFromString(await answer.text(), "text/html"));
    } catch {
      // The stream notices a lost connection, and says so.
    }
    refreshed = performance.now();
    refreshing = false;
  }, Math.max(refreshed + 5000 - performance.now(), 0));
}

function swap(fresh) {
  if (!document.querySelector(".tools") !== !fresh.querySelector(".tools")) return location.reload();
  const before = watched();
  for (const part of document.querySelectorAll("[data-swap]")) {
    part.replaceWith(fresh.getElementById(part.id));
  }
  document.title = fresh.title;
  tick();
  if (watched() !== before) connect();
}

function watched() {
  return rows().map((row) => row.dataset.vehicle).join(",");
}

let stream = null;
function connect() {
  stream?.close();
  stream = new EventSource(`/rows?vehicles=${watched()}`);
  const lost = document.getElementById("lost");
  stream.onopen = () => {
    if (!lost.hidden) refresh();
    lost.hidden = true;
  };
  stream.onerror = () => {
    lost.hidden = false;
    if (stream.readyState === EventSource.CLOSED) setTimeout(connect, 5000);
  };
  stream.addEventListener("clock", (event) => {
    const told = JSON.parse(event.data);
    epoch = { now: Date.parse(told.now), at: performance.now(), speed: told.speed };
    tick();
  });
  stream.addEventListener("row", (event) => {
    replaceRow(event.data);
  });
  stream.addEventListener("gone", refresh);
  stream.addEventListener("fleet", refresh);
}

setInterval(tick, 1000);
connect();
