"""The card of a promoted version, from its manifest alone: what it is, how good, how made, and what it is not."""

from __future__ import annotations

from collections.abc import Iterable
from datetime import UTC, datetime
from typing import Any

from study.markdown import as_code, escaped
from study.models.card_figure import FIGURE, draw_card
from study.models.manifest import Calibration, Manifest, SetCalibration
from study.results.ranking import Measurement
from study.statistics import METRICS
from study.tracking import flat
from trainers.evaluation.record import wilson
from trainers.model import bundled as tiny
from trainers.objectives import METHODS

CARD = "README.md"
LEFT_OUT = ("data.", "evaluate.", "goal.", "model.")  # told elsewhere in the card


def card_files(manifest: Manifest) -> dict[str, bytes]:
    """`README.md` and its figure, by file name. A manifest without gates, seeds or calibration has a shorter card."""
    sections = [
        _head(manifest), _results(manifest), _confirm(manifest), _gates(manifest),
        _calibration(manifest), _seeds(manifest), _recipe(manifest), _data(manifest), _limits(manifest),
        _use(manifest), _provenance(manifest),
    ]  # fmt: skip
    text = "\n\n".join(section for section in sections if section) + "\n"
    return {CARD: text.encode(), FIGURE: draw_card(manifest)}


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
    """A value as a table's cell; text that is not ours has been escaped."""
    return "" if value is None else f"{value:.6g}" if isinstance(value, float) else str(value)


def _head(manifest: Manifest) -> str:
    attack, model, method = (manifest.config[part] for part in ("attack", "model", "method"))
    eps = flat({"attack": {"eps": attack["eps"]}})["attack.eps"]
    text = (
        f"# {manifest.model}, version {manifest.version}\n\n"
        f"The CLIP {escaped(model['arch'])} ({escaped(model['pretrained'])}) with an image encoder that was fine-tuned "
        f"by {_method(method['name'])} against {attack['name'].upper()} ({attack['norm']}, eps "
        f"{eps}, {attack['steps']} steps) to classify adversarial images zero-shot. The text encoder and the logit "
        f"scale are the original's. Trial {manifest.trial} of study `{manifest.study}`, promoted "
        f"{datetime.fromtimestamp(manifest.created_ms / 1000, UTC):%Y-%m-%d %H:%M} UTC."
    )
    if manifest.forced:
        text += f"\n\n**Promoted against its gates.** Reason given: {escaped(manifest.forced)}"
    return text


def _results(manifest: Manifest) -> str:
    accesses = manifest.final_accesses
    times = "once" if accesses == 1 else f"{accesses} times"
    rows = _rows(manifest.own("final"), manifest.unmodified("final"))
    return "\n".join(
        ["## Results", "", _setting(manifest), "",
         _table(("final set", "attack eps", "clean", "robust", "CLIP clean", "CLIP robust"), rows), "",
         f"![Accuracy on every final set, and calibration]({FIGURE})", "",
         f"This study has looked at the final sets {times}, this one included; each further look makes the numbers a "
         "little more optimistic."]
    )  # fmt: skip


def _setting(manifest: Manifest) -> str:
    how = manifest.measured_with
    attacks = " and ".join(entry.label.upper() for entry in how.attacks)
    return (
        "Zero-shot accuracy on sets that neither the fine-tuning nor the search saw, beside the unmodified CLIP (the "
        "same weights before fine-tuning) on the same images, with Wilson's 95 % intervals for the number of images. "
        "Robust: classified right under the attack of the evaluation at radius eps. Protocol "
        f"{how.protocol}, {attacks}. Means are unweighted."
    )


def _rows(own: Measurement, clip: Measurement) -> list[list[str]]:
    rows = []
    for name, by_eps in own["datasets"].items():
        for eps, score in by_eps.items():
            other = clip["datasets"][name][eps]
            cells = [_counted(s[right], s["total"]) for s in (score, other) for right in ("correct", "robust")]
            rows.append([f"{escaped(name)} (n = {score['total']})", eps, *cells])
    rows.append(["**mean**", "", *(f"**{_percent(each[key])}**" for each in (own, clip) for key in METRICS)])
    return rows


def _confirm(manifest: Manifest) -> str:
    rows = [[label, *(_percent(result[key]) for key in METRICS)] for label, result in manifest.confirm.items()]
    sets = ", ".join(map(escaped, manifest.own("confirm")["datasets"]))
    return "\n".join(
        ["## How it was chosen", "", f"Among the study's best trials, on the confirm sets ({sets}), which the search "
         "did not see:", "", _table(("model", "clean", "robust"), rows),
         *(f"\nTrial {each.trial} was better there and was refused: {escaped(each.reason)}."
           for each in manifest.tried)]
    )  # fmt: skip


def _gates(manifest: Manifest) -> str:
    if not manifest.gates:
        return ""
    rows = [
        (
            escaped(gate.name),
            f"**{gate.verdict}**" if gate.verdict == "failed" else gate.verdict,
            *map(escaped, (gate.found, gate.needed)),
        )
        for gate in manifest.gates
    ]
    head = ("gate", "verdict", "found", "needed")
    return f"## Gates\n\n{_evidence(manifest)}\n\n{_table(head, rows, right=False)}"


def _evidence(manifest: Manifest) -> str:
    """Where the gates were judged, what the comparison with a champion was allowed to spend, and the final verdict."""
    look, text = manifest.look, "On the confirm sets, before the final sets were looked at."
    if look is not None:
        text += (
            f" Compared with version {manifest.champion_then} in look {look.number} of this model name at confirm "
            f"sets: the chance that any of its bounds is wrong is at most {100 * look.level:.2g} %, for whichever of "
            f"{look.hypotheses} hypotheses (checkpoints and floors) was chosen."
        )
    final = [gate for gate in manifest.gates if gate.name.startswith("final ")]
    if not final:
        return f"{text} The final sets were not asked for a veto."
    vetoes = ", ".join(escaped(gate.name) for gate in final if gate.verdict == "failed")
    said = f"**They veto it: {vetoes}.**" if vetoes else "They have nothing against it."
    return f"{text} The final sets could veto, once, for this version alone. {said}"


def _calibration(manifest: Manifest) -> str:
    if manifest.calibration is None:
        return ""
    own, clip = manifest.calibration.model, manifest.calibration.unmodified
    rows = [
        [
            escaped(name),
            _percent(each.accuracy),
            _percent(each.confidence),
            *_errors(each),
            *_errors(clip.datasets[name]),
        ]
        for name, each in own.datasets.items()
    ]
    rows.append(["**mean**", "", "", *_errors(own), *_errors(clip)])
    head = ("final set", "accuracy", "confidence", "ECE", "ECE at T", "CLIP: ECE", "CLIP: ECE at its T")
    text = (
        "How far confidence and accuracy are apart (expected calibration error, 15 equal bins, clean images): with the "
        f"logit scale that the model ships with, and with logits divided by one temperature "
        f"T = {own.temperature:.3f}, fitted on the dev sets ({', '.join(map(escaped, own.fitted_on))}). The weights "
        "keep CLIP's scale; to use T, divide by it."
    )
    if own.calibration_error_at_temperature >= own.calibration_error:
        text += " **Here it does not help**: what the dev sets ask for is not what the final sets need."
    text += f" The unmodified CLIP's own T is {clip.temperature:.3f}."
    return f"## Calibration\n\n{text}\n\n{_table(head, rows)}"


def _errors(found: Calibration | SetCalibration) -> list[str]:
    return [_percent(found.calibration_error), _percent(found.calibration_error_at_temperature)]


def _seeds(manifest: Manifest) -> str:
    """What the promotion recorded of retrained seeds: every seed, then mean, deviation and interval by metric."""
    seeds = manifest.seeds
    if seeds is None:
        return ""
    rows = [[seed, *(_percent(run[key]) for key in METRICS)] for seed, run in seeds.measured.items()]
    found = [seeds.summary[metric] for metric in METRICS]
    rows.append(["**mean**", *(_percent(each.mean) for each in found)])
    rows.append(["**deviation**", *("-" if each.deviation is None else _percent(each.deviation) for each in found)])
    ends = [(each.low, each.high) for each in found if each.low is not None and each.high is not None]
    if ends:
        rows.append(["95 % interval of the mean", *(f"{100 * low:.1f} to {100 * high:.1f}" for low, high in ends)])
    return (
        "## Seeds\n\nThe same recipe, trained again with fresh seeds, measured on the confirm sets. "
        f"Shipped: {seeds.shipped}.\n\n{_table(('seed', 'clean', 'robust'), rows)}"
    )


def _recipe(manifest: Manifest) -> str:
    rows = [
        (as_code(path), value if isinstance(value, float) else escaped(value))
        for path, value in flat(manifest.config).items()
        if not path.startswith(LEFT_OUT)
    ]
    return "## Recipe\n\nEvery setting of the training run; `of_model` and `of_eps` are multiples of the model's own " \
        "scale and of eps.\n\n" + _table(("setting", "value"), rows, right=False)  # fmt: skip


def _data(manifest: Manifest) -> str:
    config = manifest.config
    rows = [
        ("fine-tuning", [config["data"]["train"]]),
        ("dev: the search looked here", config["evaluate"]["datasets"]),
        ("confirm: chosen and gated here", manifest.own("confirm")["datasets"]),
        ("final: reported above", manifest.own("final")["datasets"]),
    ]
    return "## Data\n\n" + _table(
        ("role", "sets"), [(role, ", ".join(map(escaped, sets))) for role, sets in rows], right=False
    )


def _limits(manifest: Manifest) -> str:
    points = []
    if manifest.config["model"]["arch"] == tiny.ARCH:
        points.append(
            "**This is a test bed, not a model to use.** The tiny CLIP has under a million visual parameters and knows "
            "drawn shapes, colours, letters and digits at 32 pixels; it shows that the machinery works."
        )
    points += [
        "Robust means: against the attack above, at the radii above. A stronger attack, a larger radius or another "
        "norm finds more errors, and nothing here is a proof.",
        "Intervals are for the number of images alone. Another training seed moves the numbers as well"
        + ("; see Seeds." if manifest.seeds else "; it was not retrained with other seeds."),
        "The class names decide: accuracy on other classes, prompts or domains is unknown, and CLIP's biases are still "
        "there. Do not decide about people with it.",
    ]
    if manifest.calibration is None:
        points.append("Calibration was not measured: do not read the probabilities as frequencies.")
    return "## Limits\n\n" + "\n".join(f"* {point}" for point in points)


def _use(manifest: Manifest) -> str:
    name, version = manifest.model, manifest.version
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
out. As the start of another study: `model: {{arch: {manifest.config["model"]["arch"]}, \
pretrained: {manifest.prefix}/}}`."""


def _provenance(manifest: Manifest) -> str:
    found, weights = manifest.provenance, manifest.weights
    code, packages = found.get("code") or {}, found.get("packages") or {}
    dirty = {True: ", with uncommitted changes", None: ", unknown whether changed"}.get(code.get("dirty"), "")
    named = [f"{name} {packages[name]}" for name in ("torch", "open_clip_torch", "ray", "optuna") if name in packages]
    rows = [
        ("weights", as_code(weights.uri)),
        ("SHA-256", f"`{weights.sha256}`"),
        ("size", f"{weights.bytes / 1e6:.1f} MB"),
        ("trained as", as_code(manifest.source.uri)),
        ("audit of the study", manifest.audit and escaped(manifest.audit)),
        ("code", f"`{code.get('revision')}`{dirty}" if code.get("revision") else "unknown revision"),
        ("packages", escaped(", ".join(named))),
        ("promoted on", escaped(" ".join(str(found[key]) for key in ("hostname", "platform") if found.get(key)))),
        ("devices there", escaped(", ".join(found.get("devices") or []) or "CPU")),
    ]
    return "## Provenance\n\n" + _table(("what", "value"), [row for row in rows if row[1]], right=False)


def _method(name: str) -> str:
    """As papers write it; a method whose package is not here is called what its configuration calls it."""
    row = METHODS.get(name)
    return name if row is None else row.title or name
