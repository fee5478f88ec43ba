"""The card of a promoted version, from its manifest alone: what it is, how good, how made, and what it is not."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from datetime import UTC, datetime
from typing import Any

from study.models.card_figure import FIGURE, draw_card
from study.models.catalog import created, forced_reason, gate_verdict, own_result, unmodified_result
from study.tracking import flat
from trainers.evaluation.record import wilson
from trainers.model import bundled as tiny
from trainers.objectives import METHODS

CARD = "README.md"
METRICS = ("clean_accuracy", "robust_accuracy")
LEFT_OUT = ("data.", "evaluate.", "goal.", "model.")  # told elsewhere in the card


def card_files(manifest: Mapping[str, Any]) -> dict[str, bytes]:
    """`README.md` and its figure, by file name. A manifest without gates, seeds or calibration has a shorter card."""
    figure = draw_card(manifest)
    sections = [
        _head(manifest), _results(manifest, pictured=figure is not None), _confirm(manifest), _gates(manifest),
        _calibration(manifest), _seeds(manifest), _recipe(manifest), _data(manifest), _limits(manifest),
        _use(manifest), _provenance(manifest),
    ]  # fmt: skip
    text = "\n\n".join(section for section in sections if section) + "\n"
    files = {CARD: text.encode()}
    return files if figure is None else {**files, FIGURE: figure}


def _config(manifest: Mapping[str, Any]) -> Mapping[str, Any]:
    config: Mapping[str, Any] = manifest.get("config") or {}
    return config


def _start(manifest: Mapping[str, Any]) -> str:
    model = _config(manifest).get("model") or {}
    return f"{model.get('arch', 'a CLIP')} ({model.get('pretrained', 'unknown weights')})"


def _method(manifest: Mapping[str, Any]) -> str:
    name = (_config(manifest).get("method") or {}).get("name", "fine-tuning")
    row = METHODS.get(name)
    return str(name) if row is None else row.title or str(name)


def _percent(value: float) -> str:
    return f"{100 * value:.1f} %"


def _counted(correct: int, total: int) -> str:
    low, high = wilson(correct, total)
    return f"{_percent(correct / total)} ({100 * low:.1f} to {100 * high:.1f})"


def _table(head: Iterable[str], rows: Iterable[Iterable[Any]], *, right: bool = True) -> str:
    names = list(head)
    marks = ["---", *(["---:"] * (len(names) - 1) if right else ["---"] * (len(names) - 1))]
    cells = [[_cell(value) for value in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in (names, marks, *cells))


def _cell(value: Any) -> str:
    """A value as a table's cell; a bar or a line break in it would be another column or row."""
    text = "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)
    return " ".join(text.split()).replace("|", "\\|")


def _head(manifest: Mapping[str, Any]) -> str:
    attack = _config(manifest).get("attack") or {}
    eps = flat({"attack": {"eps": attack["eps"]}})["attack.eps"] if "eps" in attack else "?"
    made = created(manifest)
    when = "" if made is None else f", promoted {datetime.fromtimestamp(made, UTC):%Y-%m-%d %H:%M} UTC"
    text = (
        f"# {manifest['model']}, version {manifest['version']}\n\n"
        f"The CLIP {_start(manifest)} with an image encoder that was fine-tuned by {_method(manifest)} against "
        f"{attack.get('name', 'pgd').upper()} ({attack.get('norm', 'linf')}, eps {eps}, {attack.get('steps', '?')} "
        f"steps) to classify adversarial images zero-shot. The text encoder and the logit scale are the original's. "
        f"Trial {manifest['trial']} of study `{manifest['study']}`{when}."
    )
    if reason := forced_reason(manifest):
        text += f"\n\n**Promoted against its gates.** Reason given: {_cell(reason)}"
    return text


def _results(manifest: Mapping[str, Any], *, pictured: bool) -> str:
    own, clip = own_result(manifest, "final"), unmodified_result(manifest, "final")
    if own is None:
        return "## Results\n\nNot measured on the final sets."
    lines = ["## Results", "", _setting(manifest)]
    lines += ["", _table(("final set", "attack eps", "clean", "robust", "CLIP clean", "CLIP robust"),
                         _rows(own, clip))]  # fmt: skip
    if pictured:
        lines += ["", f"![Accuracy on every final set, and calibration]({FIGURE})"]
    accesses = manifest.get("final_accesses")
    if accesses is not None:
        times = "once" if accesses == 1 else f"{accesses} times"
        lines += ["", f"This study has looked at the final sets {times}, this one included; each further look makes "
                  "the numbers a little more optimistic."]  # fmt: skip
    return "\n".join(lines)


def _setting(manifest: Mapping[str, Any]) -> str:
    how = manifest.get("measured_with") or {}
    attacks = [each.get("attack") or {} for each in how.get("attacks") or ()] or [how.get("attack") or {}]
    names = [str(a.get("name", "")).upper() + (f"-{a['steps']}" if a.get("steps") else "") for a in attacks]
    said = f" Protocol {how['protocol']}, {' and '.join(filter(None, names))}." if how.get("protocol") else ""
    return (
        "Zero-shot accuracy on sets that neither the fine-tuning nor the search saw, beside the unmodified CLIP (the "
        "same weights before fine-tuning) on the same images, with Wilson's 95 % intervals for the number of images. "
        f"Robust: classified right under the attack of the evaluation at radius eps.{said} Means are unweighted."
    )


def _rows(own: Mapping[str, Any], clip: Mapping[str, Any] | None) -> list[list[str]]:
    rows = []
    for name, by_eps in own["datasets"].items():
        for eps, score in by_eps.items():
            other = ((clip or {}).get("datasets", {}).get(name) or {}).get(eps)
            cells = [_counted(s["correct"], s["total"]) if s else "" for s in (score, other)]
            robust = [_counted(s["robust"], s["total"]) if s else "" for s in (score, other)]
            rows.append([f"{name} (n = {score['total']})", eps, cells[0], robust[0], cells[1], robust[1]])
    means = [
        _percent(each[key]) if each else "" for each in (own, clip) for key in ("clean_accuracy", "robust_accuracy")
    ]
    rows.append(["**mean**", "", *(f"**{cell}**" if cell else "" for cell in means)])
    return rows


def _confirm(manifest: Mapping[str, Any]) -> str:
    found = manifest.get("confirm") or {}
    if not found:
        return ""
    rows = [
        [label, _percent(result["clean_accuracy"]), _percent(result["robust_accuracy"])]
        for label, result in found.items()
        if "clean_accuracy" in result
    ]
    sets = ", ".join(next(iter(found.values())).get("datasets") or {})
    return "\n".join(
        ["## How it was chosen", "", f"Among the study's best trials, on the confirm sets ({sets}), which the search "
         "did not see:", "", _table(("model", "clean", "robust"), rows)]
    )  # fmt: skip


def _gates(manifest: Mapping[str, Any]) -> str:
    gates = manifest.get("gates") or []
    if not gates:
        return ""
    rows = []
    for gate in gates:
        verdict = gate_verdict(gate)
        shown = f"**{verdict}**" if verdict == "failed" else verdict
        found, needed = gate.get("found", gate.get("value")), gate.get("needed", gate.get("rule"))
        rows.append((gate.get("name"), shown, found, needed))
    return "## Gates\n\nOn the confirm sets, before the final sets were looked at.\n\n" + _table(
        ("gate", "verdict", "found", "needed"), rows, right=False
    )


def _calibration(manifest: Mapping[str, Any]) -> str:
    found = manifest.get("calibration") or {}
    own, clip = found.get("model"), found.get("unmodified")
    if not own:
        return ""
    rows: list[list[Any]] = []
    for name, each in own["datasets"].items():
        other = ((clip or {}).get("datasets") or {}).get(name) or {}
        rows.append([name, _percent(each["accuracy"]), _percent(each["confidence"]), *_errors(each), *_errors(other)])
    rows.append(["**mean**", "", "", *_errors(own), *_errors(clip or {})])
    head = ("final set", "accuracy", "confidence", "ECE", "ECE at T", "CLIP: ECE", "CLIP: ECE at its T")
    text = (
        "How far confidence and accuracy are apart (expected calibration error, 15 equal bins, clean images): with the "
        f"logit scale that the model ships with, and with logits divided by one temperature "
        f"T = {own['temperature']:.3f}, fitted on the dev sets ({', '.join(own['fitted_on'])}). The weights keep "
        "CLIP's scale; to use T, divide by it."
    )
    if own["calibration_error_at_temperature"] >= own["calibration_error"]:
        text += " **Here it does not help**: what the dev sets ask for is not what the final sets need."
    if clip:
        text += f" The unmodified CLIP's own T is {clip['temperature']:.3f}."
    return f"## Calibration\n\n{text}\n\n{_table(head, rows)}"


def _errors(found: Mapping[str, Any]) -> list[str]:
    keys = ("calibration_error", "calibration_error_at_temperature")
    return [f"{100 * found[key]:.1f} %" if key in found else "" for key in keys]


def _seeds(manifest: Mapping[str, Any]) -> str:
    """What the promotion recorded of retrained seeds: every seed, then mean, deviation and interval by metric."""
    seeds = manifest.get("seeds") or {}
    runs = seeds.get("measured") or {}
    if not runs:
        return ""
    text = "## Seeds\n\nThe same recipe, trained again with fresh seeds, measured on the confirm sets. "
    text += f"Shipped: {seeds.get('shipped', 'the trial')}."
    rows = [[seed, *(_percent(run[key]) for key in METRICS)] for seed, run in runs.items()]
    for title, key in (("mean", "mean"), ("deviation", "deviation")):
        found = [seeds["summary"][metric].get(key) for metric in METRICS]
        rows.append([f"**{title}**", *("-" if value is None else _percent(value) for value in found)])
    ends = [(seeds["summary"][metric].get("low"), seeds["summary"][metric].get("high")) for metric in METRICS]
    if all(low is not None for low, _ in ends):
        rows.append(["95 % interval of the mean", *(f"{100 * low:.1f} to {100 * high:.1f}" for low, high in ends)])
    return f"{text}\n\n{_table(('seed', 'clean', 'robust'), rows)}"


def _recipe(manifest: Mapping[str, Any]) -> str:
    rows = [(f"`{path}`", value) for path, value in flat(_config(manifest)).items() if not path.startswith(LEFT_OUT)]
    return "## Recipe\n\nEvery setting of the training run; `of_model` and `of_eps` are multiples of the model's own " \
        "scale and of eps.\n\n" + _table(("setting", "value"), rows, right=False)  # fmt: skip


def _data(manifest: Mapping[str, Any]) -> str:
    data = _config(manifest).get("data") or {}
    rows = [("fine-tuning", data.get("train")), ("dev: the search looked here", ", ".join(data.get("dev") or ()))]
    for role, meaning in (("confirm", "confirm: chosen and gated here"), ("final", "final: reported above")):
        rows.append((meaning, ", ".join((own_result(manifest, role) or {}).get("datasets") or {})))
    return "## Data\n\n" + _table(("role", "sets"), [row for row in rows if row[1]], right=False)


def _limits(manifest: Mapping[str, Any]) -> str:
    points = []
    arch = (_config(manifest).get("model") or {}).get("arch")
    if arch == tiny.ARCH:
        points.append(
            "**This is a test bed, not a model to use.** The tiny CLIP has under a million visual parameters and knows "
            "drawn shapes, colours, letters and digits at 32 pixels; it shows that the machinery works."
        )
    points += [
        "Robust means: against the attack above, at the radii above. A stronger attack, a larger radius or another "
        "norm finds more errors, and nothing here is a proof.",
        "Intervals are for the number of images alone. Another training seed moves the numbers as well"
        + ("; see Seeds." if manifest.get("seeds") else "; it was not retrained with other seeds."),
        "The class names decide: accuracy on other classes, prompts or domains is unknown, and CLIP's biases are still "
        "there. Do not decide about people with it.",
    ]
    if not manifest.get("calibration"):
        points.append("Calibration was not measured: do not read the probabilities as frequencies.")
    return "## Limits\n\n" + "\n".join(f"* {point}" for point in points)


def _use(manifest: Mapping[str, Any]) -> str:
    name, version = manifest["model"], manifest["version"]
    return f"""## Use

```
agft pull {name}@{version} {name}
```

checks every byte. The folder is one of open_clip's:

```python
import open_clip

model, _, preprocess = open_clip.create_model_and_transforms("local-dir:{name}")
tokenizer = open_clip.get_tokenizer("local-dir:{name}")
```

With MLflow (`MLFLOW_TRACKING_URI` and S3's address and keys in the environment; MLflow numbers versions itself, so name
an alias): `mlflow.pyfunc.load_model("models:/{name}@champion")`, or over HTTP
`mlflow models serve -m models:/{name}@champion --env-manager local`. Images and class names go in, probabilities come
out. As the start of another study: `model: {{arch: {(_config(manifest).get("model") or {}).get("arch", "ARCH")}, \
pretrained: {str(manifest["weights"]["uri"]).rpartition("/")[0]}/}}`."""


def _provenance(manifest: Mapping[str, Any]) -> str:
    found = manifest.get("provenance") or {}
    code, weights = found.get("code") or {}, manifest["weights"]
    dirty = {True: ", with uncommitted changes", None: ", unknown whether changed"}.get(code.get("dirty"), "")
    packages = found.get("packages") or {}
    named = [f"{name} {packages[name]}" for name in ("torch", "open_clip_torch", "ray", "optuna") if name in packages]
    rows = [
        ("weights", f"`{weights['uri']}`"),
        ("SHA-256", f"`{weights['sha256']}`"),
        ("size", f"{weights['bytes'] / 1e6:.1f} MB" if weights.get("bytes") else None),
        ("trained as", f"`{(manifest.get('source') or {}).get('uri')}`" if manifest.get("source") else None),
        ("code", f"`{code.get('revision')}`{dirty}" if code.get("revision") else "unknown revision"),
        ("packages", ", ".join(named)),
        ("promoted on", " ".join(str(found[key]) for key in ("hostname", "platform") if found.get(key))),
        ("devices there", ", ".join(found.get("devices") or []) or "CPU"),
    ]
    return "## Provenance\n\n" + _table(("what", "value"), [row for row in rows if row[1]], right=False)
