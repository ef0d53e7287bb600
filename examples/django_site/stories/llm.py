"""The process's client: made when it is first used, shared by all threads, and good in forked children, too."""

from functools import cache

from promptmill import Client


@cache
def llm() -> Client:
    return Client()
