"""Submit in one request, poll in another; and start a Celery task of the site's own that asks promptmill."""

from celery.result import AsyncResult
from django.http import HttpRequest, JsonResponse
from django.views.decorators.http import require_GET, require_POST

from promptmill import TaskStatus
from stories.llm import llm
from stories.tasks import summarise


@require_POST
def submit(request: HttpRequest) -> JsonResponse:
    task = llm().submit(request.POST["beginning"], max_tokens=200, timeout_s=600)
    return JsonResponse({"id": task.id}, status=202)


@require_GET
def poll(request: HttpRequest, task_id: str) -> JsonResponse:
    task = llm().task(task_id)
    status = task.status()
    if status in (TaskStatus.QUEUED, TaskStatus.RUNNING):
        return JsonResponse({"status": status})
    return JsonResponse({"status": status, "text": task.result().text})  # or raises: see errors.py


@require_POST
def summarise_later(request: HttpRequest) -> JsonResponse:
    return JsonResponse({"id": summarise.delay(request.POST["text"]).id}, status=202)


@require_GET
def summary(request: HttpRequest, task_id: str) -> JsonResponse:
    result = AsyncResult(task_id)
    return JsonResponse({"status": result.status, "text": result.result if result.successful() else ""})
