"""Routes under `/v1`, as clients of the OpenAI API know them."""

from __future__ import annotations

from fastapi import APIRouter, Request
from msgspec import json
from starlette.responses import Response

from chiplet.ipc.messages import EngineReady
from chiplet.server.openai.answers import ModelCard, ModelList
from chiplet.server.openai.bodies import ChatBody, CompletionBody
from chiplet.server.openai.chat import chat_completions
from chiplet.server.openai.completions import completions
from chiplet.server.service import Service


def openai_router(service: Service) -> APIRouter:
    """The routes under `/v1`."""
    router = APIRouter(prefix="/v1", tags=["OpenAI API"])

    @router.post("/chat/completions", response_model=None)
    async def post_chat_completions(request: Request, body: ChatBody) -> Response:
        """Answer a conversation, whole or as server-sent events."""
        return await chat_completions(service, request, body)

    @router.post("/completions", response_model=None)
    async def post_completions(request: Request, body: CompletionBody) -> Response:
        """Continue prompts, whole or as server-sent events."""
        return await completions(service, request, body)

    @router.get("/models", response_model=None)
    async def get_models() -> Response:
        """The served model, in a list."""
        card = _card(service, service.engine_for(None))
        return _json(ModelList("list", [card]))

    @router.get("/models/{model:path}", response_model=None)
    async def get_model(model: str) -> Response:
        """The served model; 404 for any other."""
        return _json(_card(service, service.engine_for(model)))

    # Registration by decorator is all that these names are for.
    del post_chat_completions, post_completions, get_models, get_model
    return router


def _card(service: Service, engine: EngineReady) -> ModelCard:
    return ModelCard(
        id=engine.model_name,
        object="model",
        created=service.started_s,
        owned_by="chiplet",
        max_model_len=engine.limits.context_length,
    )


def _json(body: ModelCard | ModelList) -> Response:
    return Response(json.encode(body), media_type="application/json")
