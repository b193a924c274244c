"""Actors that a task can kill: real ones, but for one kind of task that ends their process."""

import os
import signal

from agent_actors.actor import ActorParts, ActorSettings
from agent_actors.adapters.vllm import VLLMHTTPClient
from agent_actors.assembly import build_agent_actor
from agent_actors.ports import ChatReply, ChatRequest, Listener

MARK = "[killer]"


async def build_mortal_actor(settings: ActorSettings) -> ActorParts:
    """Build an actor as production does, but for what it does when its model is asked."""
    VLLMHTTPClient.chat = _chat_or_die
    return await build_agent_actor(settings)


_chat = VLLMHTTPClient.chat


async def _chat_or_die(
    self: VLLMHTTPClient, request: ChatRequest, listener: Listener | None = None
) -> ChatReply:
    if any(MARK in (message.content or "") for message in request.messages):
        os.kill(os.getpid(), signal.SIGKILL)
    return await _chat(self, request, listener)
