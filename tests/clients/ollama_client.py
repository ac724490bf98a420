"""Ollama's own library, unmodified: chat, generate, embed, list, ps, show, tools, errors, async.

From the environment: OLLAMA_HOST, OLLAMA_API_KEY and SSL_CERT_FILE, as its users set them.
"""

import asyncio
import json

import ollama

OPTIONS = {"temperature": 0, "num_predict": 16, "seed": 1}
HELLO = [{"role": "user", "content": "Say hello."}]


def raises(status, call):
    try:
        call()
    except ollama.ResponseError as error:
        assert error.status_code == status and error.error, (error.status_code, error.error)
        return error.error
    raise AssertionError(f"no error of status {status}")


def chats():
    reply = ollama.chat("assistant", HELLO, options=OPTIONS)
    assert reply.done and reply.done_reason in ("stop", "length") and reply.message.content, reply
    assert reply.eval_count > 0 and reply.eval_duration > 0 and reply.total_duration > reply.eval_duration, reply
    pieces = list(ollama.chat("assistant:latest", HELLO, options=OPTIONS, stream=True))
    assert "".join(piece.message.content for piece in pieces) == reply.message.content
    assert [piece.done for piece in pieces] == [False] * (len(pieces) - 1) + [True]


def generates():
    reply = ollama.generate("assistant", "Say hello.", options=OPTIONS)
    streamed = ollama.generate("assistant", "Say hello.", options=OPTIONS, stream=True)
    assert reply.response and "".join(piece.response for piece in streamed) == reply.response
    schema = {"type": "object", "properties": {"legs": {"enum": [2, 4]}}, "required": ["legs"], "additionalProperties": False}
    cat = ollama.generate("assistant", "How many legs has a cat?", format=schema, options={"num_predict": 40})
    assert json.loads(cat.response)["legs"] in (2, 4), cat
    assert ollama.generate("assistant", "").done_reason == "load"


def embeds():
    reply = ollama.embed("vectors", ["a small cat", "tax law"])
    assert [len(vector) for vector in reply.embeddings] == [576, 576] and reply.prompt_eval_count > 2


def lists():
    assert {"assistant:latest", "vectors:latest"} <= {model.model for model in ollama.list().models}
    running = ollama.ps().models
    assert any(model.name == "assistant:latest" and model.size > 0 and model.expires_at for model in running), running
    shown = ollama.show("assistant")
    assert shown.modelinfo["general.architecture"] == "llama" and "completion" in shown.capabilities, shown
    assert shown.details.family == "llama" and shown.details.format == "gguf"


def errors():
    assert "nobody" in raises(404, lambda: ollama.chat("nobody", HELLO))
    assert "temperature" in raises(400, lambda: ollama.chat("assistant", HELLO, options={"temperature": 9}))
    # A stream that is refused before it begins.
    raises(400, lambda: list(ollama.chat("assistant", [{"role": "user", "content": "x " * 9000}], stream=True)))
    raises(401, lambda: ollama.Client(headers={"authorization": "Bearer nobody"}).list())


def tools():
    def weather(city: str) -> str:
        """The weather in a city now.

        Args:
          city: The city's name
        """
        return "rain"

    # What a model as small as this makes of it is its own; that it is taken, and answered, is ours.
    reply = ollama.chat("assistant", [{"role": "user", "content": "What is the weather in Oslo?"}], tools=[weather], options=OPTIONS)
    assert reply.done and (reply.message.content or reply.message.tool_calls), reply
    asked = [
        {"role": "user", "content": "What is the weather in Oslo?"},
        {"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "weather", "arguments": {"city": "Oslo"}}}]},
        {"role": "tool", "tool_name": "weather", "content": "rain"},
    ]
    assert ollama.chat("assistant", asked, tools=[weather], options=OPTIONS).done
    assert "tools" in ollama.show("assistant").capabilities


async def at_once():
    client = ollama.AsyncClient()
    replies = await asyncio.gather(*[client.chat("assistant", HELLO, options=OPTIONS) for _ in range(4)])
    assert all(reply.message.content for reply in replies)
    assert "".join([piece.response async for piece in await client.generate("assistant", "Say hello.", options=OPTIONS, stream=True)])


for step in [chats, generates, embeds, lists, errors, tools]:
    step()
    print("ok", step.__name__, flush=True)
asyncio.run(at_once())
print("ok at_once")
