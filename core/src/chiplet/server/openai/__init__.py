"""The OpenAI API: bodies of requests, shapes of answers."""
