"""Tell a web hook of runs that did not end well: one block and one automation on the Prefect server.

The address may be a secret. Prefect keeps it encrypted and shows it to nobody; it is on no command line but the user's.
"""

from __future__ import annotations

from contextlib import suppress
from datetime import timedelta
from urllib.parse import SplitResult, urlsplit

from prefect.blocks.webhook import Webhook
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.events.actions import CallWebhook
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification
from prefect.exceptions import ObjectNotFound
from prefect.types import SecretDict
from pydantic import SecretStr

from flows.automations import apply_automation
from minillm.errors import UserError

FAILED_RUNS = "minillm: tell of runs that failed, crashed or timed out"
_BLOCK_NAME = "minillm-failed-runs"
_BAD_ENDS = {f"prefect.flow-run.{state}" for state in ("Failed", "Crashed", "TimedOut")}
# Slack, Mattermost and Teams show `text`.
_PAYLOAD = """{"text": {{ (
    "Run " ~ flow_run.name ~ " of " ~ deployment.name ~ ": " ~ flow_run.state.name ~ ". "
    ~ (flow_run.state.message or "") ~ " " ~ (flow_run | ui_url)
) | tojson }}}"""


def notify(url: str) -> str:
    """Tell an address from now on, in place of the last one, and return what was done; raises UserError."""
    parts = _checked(url)
    # The class is registered by its fields; a header says what the body is, since the server sends it as text.
    block = Webhook(url=SecretStr(url), headers=SecretDict({"Content-Type": "application/json"}))
    block_id = block.save(_BLOCK_NAME, overwrite=True, _sync=True)
    with get_client(sync_client=True) as client:
        apply_automation(client, _automation(block_id))
    return f"runs of the deployments that fail, crash or time out are told to {parts.scheme}://{parts.hostname}"


def notify_nobody() -> str:
    """Remove what `notify` made, and return what was done."""
    with get_client(sync_client=True) as client:
        for automation in client.read_automations_by_name(FAILED_RUNS):
            client.delete_automation(automation.id)
        _delete_block(client)
    return "nobody is told of failed runs"


def _automation(block_id: object) -> AutomationCore:
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
        expect=_BAD_ENDS,
        for_each={"prefect.resource.id"},
        posture=Posture.Reactive,
        threshold=1,
        within=timedelta(0),
    )
    return AutomationCore(
        name=FAILED_RUNS, trigger=trigger, actions=[CallWebhook(block_document_id=block_id, payload=_PAYLOAD)]
    )


def _delete_block(client: SyncPrefectClient) -> None:
    with suppress(ObjectNotFound):
        client.delete_block_document(client.read_block_document_by_name(_BLOCK_NAME, "webhook").id)


def _checked(url: str) -> SplitResult:
    """Return the parts of an address; an error shows no more of it than what stands before the first slash."""
    try:
        parts = urlsplit(url)
        is_good = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_good = False
    if not is_good or any(character.isspace() for character in url):
        raise UserError(
            f"--url: an address http://HOST/... or https://HOST/... is needed (got {url.split('/')[0]!r} ...)"
        )
    return parts
