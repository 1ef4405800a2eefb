"""Asks a running server with the official client: python examples/openai_client.py"""

from __future__ import annotations

from openai import OpenAI


def main() -> None:
    """A streamed answer, then a whole one."""
    client = OpenAI(base_url="http://127.0.0.1:8000/v1", api_key="unused")
    model = client.models.list().data[0].id
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": "What is gravity?"}],
        temperature=0,
        stream=True,
    )
    for chunk in stream:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
    print()
    completion = client.completions.create(model=model, prompt="The sea is", max_tokens=16)
    print(completion.choices[0].text)


if __name__ == "__main__":
    main()
