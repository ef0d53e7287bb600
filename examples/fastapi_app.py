"""FastAPI: submit in one request, poll in another, stream by server-sent events.

pip install promptmill fastapi uvicorn; uvicorn fastapi_app:app
"""

from collections.abc import AsyncIterator
from contextlib import aclosing, asynccontextmanager
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.sse import EventSourceResponse, ServerSentEvent
from pydantic import BaseModel

from promptmill import AsyncClient, PromptmillError, TaskStatus


@asynccontextmanager
async def lifespan(_: FastAPI) -> AsyncIterator[dict[str, Any]]:
    async with AsyncClient() as client:  # one for each process, on its event loop
        yield {"client": client}


app = FastAPI(lifespan=lifespan)


class Question(BaseModel):
    text: str
    max_tokens: int = 256


@app.post("/answers", status_code=202)
async def submit(question: Question, request: Request) -> dict[str, str]:
    chat = [{"role": "user", "content": question.text}]
    options = {"max_tokens": question.max_tokens, "timeout_s": 600, "stream": True}
    task = await request.state.client.submit(messages=chat, **options)
    return {"id": task.id}


@app.get("/answers/{task_id}")
async def poll(task_id: str, request: Request) -> dict[str, str]:
    task = request.state.client.task(task_id)
    if (status := await task.status()) in (TaskStatus.QUEUED, TaskStatus.RUNNING):
        return {"status": status}
    return {"status": status, "text": (await task.result()).text}  # or raises what the task ended in


@app.get("/answers/{task_id}/events", response_class=EventSourceResponse)
async def events(task_id: str, request: Request) -> AsyncIterator[ServerSentEvent]:
    """``restart`` voids the text so far; at ``done`` and ``failed`` a page closes its EventSource."""
    try:
        async with aclosing(request.state.client.task(task_id).stream()) as deltas:
            async for delta in deltas:
                yield ServerSentEvent(event="restart" if delta.restarted else "delta", data=delta)
        yield ServerSentEvent(event="done", data="")
    except PromptmillError as error:  # the status line is long out
        yield ServerSentEvent(event="failed", data=type(error).__name__)


@app.exception_handler(PromptmillError)
async def on_error(_: Request, error: PromptmillError) -> JSONResponse:
    detail = str(error) if error.http_status < 500 else "the text generation has a problem"
    headers = {"Retry-After": "5"} if error.http_status == 503 else {}
    return JSONResponse({"error": type(error).__name__, "detail": detail}, error.http_status, headers)
