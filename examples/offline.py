"""Completes prompts and answers a question without a server: python examples/offline.py"""

from __future__ import annotations

from chiplet import LLM, SamplingParams


def main() -> None:
    """Completions, then a streamed chat."""
    params = SamplingParams(temperature=0.0, max_tokens=32)
    with LLM("smollm2-135m") as llm:
        for completion in llm.generate(["The sea is", "In the beginning"], params):
            print(completion.text)
        messages = [{"role": "user", "content": "What is gravity?"}]
        for delta in llm.stream_chat(messages, params):
            print(delta.text, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
