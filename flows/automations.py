"""What the Prefect server does by itself: a run that nobody hears of any more is Crashed."""

from __future__ import annotations

from datetime import timedelta

from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.objects import StateType
from prefect.events.actions import ChangeFlowRunState
from prefect.events.schemas.automations import AutomationCore, EventTrigger, Posture
from prefect.events.schemas.events import ResourceSpecification

from flows.workers import HEARTBEAT_S

LOST_RUNS = "minillm: a run that is not heard of is Crashed"
SILENCE_S = 3 * HEARTBEAT_S
_HEARTBEAT = "prefect.flow-run.heartbeat"
_BEGINNINGS = {f"prefect.flow-run.{state}" for state in ("Pending", "Running", "Retrying")}


def lost_runs() -> AutomationCore:
    """Return the automation for runs whose processes were killed together with the worker that would report them.

    A run is lost when it was heard of, and then neither a heartbeat nor another state for 90 s. Runs without a
    deployment are left alone: whoever started one by hand sees it end, and they send fewer heartbeats.
    """
    trigger = EventTrigger(
        match=ResourceSpecification({"prefect.resource.id": "prefect.flow-run.*"}),
        match_related=ResourceSpecification({"prefect.resource.role": "deployment"}),
        after={_HEARTBEAT, *_BEGINNINGS},
        expect={"prefect.flow-run.*"},
        for_each={"prefect.resource.id"},
        posture=Posture.Proactive,
        threshold=1,
        within=timedelta(seconds=SILENCE_S),
    )
    words = f"no heartbeat for {SILENCE_S} s: its process and its worker are gone. Retry goes on where it was."
    return AutomationCore(
        name=LOST_RUNS,
        description="The worker of a lost run cannot report it.",
        trigger=trigger,
        actions=[ChangeFlowRunState(state=StateType.CRASHED, message=words)],
    )


def apply_automation(client: SyncPrefectClient, automation: AutomationCore) -> None:
    """Make an automation, or change the one of that name; one that was switched off stays off."""
    found = client.read_automations_by_name(automation.name)
    if found:
        client.update_automation(found[0].id, automation.model_copy(update={"enabled": found[0].enabled}))
    else:
        client.create_automation(automation)
