"""What happens to a champion, told to a web address and to MLflow: promoted, refused, rolled back."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from typing import Any

from infra.errors import ServiceError
from infra.services import Services
from infra.tracking.registry import tag_version
from study.driver.messages import Notifier
from study.models.head import read_head, read_manifest

TAG = "agft.event"  # of a version in MLflow's registry: the newest that happened to the champion, as JSON


def tell(
    services: Services, event: str, model: str, facts: Mapping[str, Any], say: Callable[[str], None]
) -> None:  # fmt: skip
    """Post `{event, time, model, champion, previous, generation, ...facts}` (`study.driver.messages`), and set the tag
    of the champion's version in MLflow, whose own webhooks (`model_version_tag.set`) tell whoever listens there.

    A receiver or a server that does not answer costs a line, nothing else.
    """
    head, _ = read_head(services.bucket, model)
    told = {
        "model": model,
        "champion": head.champion,
        "previous": head.previous,
        "generation": head.generation,
        **facts,
    }
    notifier = Notifier.from_environment(os.environ)
    notifier.send(event, told)
    if head.champion is not None:
        key = read_manifest(services.bucket, model, head.champion).key
        try:
            tag_version(services.mlflow_uri, model, key, {TAG: json.dumps({"event": event, **told}, sort_keys=True)})
        except ServiceError as error:
            say(f"MLflow was not told of it: {' '.join(str(error).split())}")
    if left := notifier.close():
        say(f"the webhook has not taken {left} message")
