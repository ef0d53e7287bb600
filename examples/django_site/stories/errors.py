"""promptmill's errors as HTTP responses."""

from collections.abc import Callable

from django.http import HttpRequest, HttpResponse, JsonResponse

from promptmill import PromptmillError


class PromptmillErrors:
    """Middleware: answers for views that raise a PromptmillError."""

    def __init__(self, get_response: Callable[[HttpRequest], HttpResponse]) -> None:
        self.get_response = get_response

    def __call__(self, request: HttpRequest) -> HttpResponse:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, error: Exception) -> JsonResponse | None:
        if not isinstance(error, PromptmillError):
            return None
        detail = str(error) if error.http_status < 500 else "the text generation has a problem"
        headers = {"Retry-After": "5"} if error.http_status == 503 else {}
        return JsonResponse(
            {"error": type(error).__name__, "detail": detail}, status=error.http_status, headers=headers
        )
