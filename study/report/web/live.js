
// --- a page with live data: parts that have changed take the place of the old ones, what the reader chose stays
const live = JSON.parse(document.getElementById("live-data").textContent);
const base = `/studies/${encodeURIComponent(live.study)}`;
const byId = (id) => document.getElementById(id);
const said = byId("said"), logBox = byId("log-box");

function showState(found) {
  byId("live-state").textContent = found.state;
  for (const button of document.querySelectorAll("[data-do]")) {
    const allowed = found.can[button.dataset.do];
    if (allowed !== undefined && button.dataset.trial === undefined) button.disabled = !allowed;
  }
  byId("live-state").title = found.message;
}

function trialButtons() {
  for (const row of rows) {
    const cell = row.insertCell();
    const add = (what, ask) => {
      const button = document.createElement("button");
      Object.assign(button, { textContent: what });
      Object.assign(button.dataset, { do: what, trial: row.dataset.trial, ask });
      cell.append(button, " ");
    };
    const number = row.dataset.trial;
    if (row.dataset.state === "complete") add("promote", `Prove trial ${number} on unseen data, and promote it if it passes every gate?`);
    if (row.dataset.state !== "dropped") add("drop", `Take trial ${number} out? Its history stays, and it counts nowhere.`);
  }
}
table.tHead.rows[0].append(document.createElement("th"));

function show(parts) {
  for (const [id, html] of [["cards", parts.cards], ["nav", parts.nav], ["promoted", parts.promotions], ["footer", parts.footer]]) {
    if (byId(id).innerHTML !== html) byId(id).innerHTML = html;
  }
  report.figures = parts.figures;
  for (const [name, html] of Object.entries(parts.sections)) {
    let section = byId(`${name}-section`);
    if (!section || Boolean(section.querySelector(".plot")) !== name in parts.figures) {
      const fresh = document.createRange().createContextualFragment(html).firstElementChild;
      if (section) section.replaceWith(fresh); else byId("figures").append(fresh);
      fresh.querySelectorAll(".plot").forEach(drawLater);
      continue;
    }
    const box = section.querySelector(".plot");
    if (box && box.classList.contains("js-plotly-plot")) { // drawn: again when it is in sight
      if (waiting) waiting.observe(box); else draw(box);
    }
  }
  const chosen = state.value;
  state.innerHTML = parts.states;
  state.value = chosen;
  body.innerHTML = parts.rows;
  rows = Array.from(body.rows);
  trialButtons();
  sort();
  filter();
  showState(parts);
}

async function renew() {
  try {
    const answer = await fetch(`${base}/parts?known=${live.version}`);
    if (answer.status === 200) {
      live.version = answer.headers.get("X-Version");
      show(await answer.json());
    }
    document.body.classList.toggle("away", ![200, 204].includes(answer.status));
    if (logBox.open) await renewLog();
  } catch {
    document.body.classList.add("away");
  }
  setTimeout(renew, document.hidden ? 5000 : 1000);
}

async function renewLog() {
  const answer = await fetch(`${base}/log`);
  if (answer.ok) {
    const pre = byId("log"), below = pre.scrollHeight - pre.scrollTop - pre.clientHeight < 30;
    pre.textContent = await answer.text();
    if (below) pre.scrollTop = pre.scrollHeight;
  }
}
logBox.addEventListener("toggle", () => { if (logBox.open) renewLog(); });

document.addEventListener("click", async (event) => {
  const button = event.target.closest("button[data-do]");
  if (!button || (button.dataset.ask && !confirm(button.dataset.ask))) return;
  const asked = {};
  if (button.dataset.trial !== undefined) asked.trial = Number(button.dataset.trial);
  if (button.dataset.do === "extend") asked.trials = Number(byId("more").value);
  button.disabled = true;
  try {
    const answer = await fetch(`${base}/${button.dataset.do}`, {
      method: "POST", body: JSON.stringify(asked), headers: { "Content-Type": "application/json", "X-AGFT-Token": live.token },
    });
    said.textContent = (await answer.json()).said;
  } catch (error) {
    said.textContent = `The page's server does not answer (${error}); start it again with: agft ui ${live.study}`;
  }
  button.disabled = false;
});

trialButtons();
showState(live);
renew();
