"""promptmill: LLM generation on your own GPU machines, from any application."""
