"""OpenAI's own library, unmodified: sync, async, streams, structured output, tools, embeddings, errors, retries.

From the environment: OPENAI_BASE_URL, OPENAI_API_KEY and SSL_CERT_FILE, as its users set them; KEY_RPM, KEY_POOR and
KEY_NARROW are keys with a limit of requests, with no money, and for the function `narrow` alone.
"""

import asyncio
import faulthandler
import json
import os
import threading
import time
from typing import Literal

import openai
from openai import AsyncOpenAI, OpenAI
from pydantic import BaseModel

# A step that hangs says where.
faulthandler.dump_traceback_later(100, exit=True)
client = OpenAI()
HELLO = [{"role": "user", "content": "Say hello."}]
SHORT = {"model": "assistant", "temperature": 0, "max_tokens": 12}
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather in a city now.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"enum": ["Paris", "Oslo"]}, "unit": {"enum": ["C", "F"]}},
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
TIME = {"type": "function", "function": {"name": "time", "parameters": {"type": "object", "properties": {}, "additionalProperties": False}}}
ASK = [{"role": "user", "content": "What is the weather in Oslo?"}]


def models():
    names = [model.id for model in client.models.list()]
    assert {"assistant", "narrow", "vectors"} <= set(names), names
    assert client.models.retrieve("assistant").owned_by == "ember"


def chats():
    reply = client.chat.completions.create(messages=HELLO, **SHORT)
    text = reply.choices[0].message.content
    assert text and reply.choices[0].finish_reason in ("stop", "length"), reply
    assert reply.usage.total_tokens == reply.usage.prompt_tokens + reply.usage.completion_tokens
    assert reply._request_id.startswith("req-") and reply.usage.ember["cost_nanos"] > 0
    chunks = list(client.chat.completions.create(messages=HELLO, stream=True, stream_options={"include_usage": True}, **SHORT))
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices) == text
    assert chunks[-1].usage.completion_tokens == reply.usage.completion_tokens
    # The library's own stream has no answer where one was cut for its length.
    stop, before = text[4:8], text[: text.index(text[4:8])]
    with client.chat.completions.stream(messages=HELLO, stop=[stop], **SHORT) as stream:
        assert "".join(event.delta for event in stream if event.type == "content.delta") == before
        assert stream.get_final_completion().choices[0].message.content == before
    logged = client.chat.completions.create(messages=HELLO, logprobs=True, top_logprobs=2, **SHORT)
    assert all(len(token.top_logprobs) == 2 for token in logged.choices[0].logprobs.content)


def completions():
    asked = {"model": "assistant", "prompt": "The capital of France is", "temperature": 0, "max_tokens": 8}
    text = client.completions.create(**asked).choices[0].text
    assert "Paris" in text, text
    assert "".join(chunk.choices[0].text for chunk in client.completions.create(stream=True, **asked)) == text


async def at_once():
    async with AsyncOpenAI() as many:
        asked = [many.chat.completions.create(messages=HELLO, **SHORT) for _ in range(6)]
        assert all(reply.choices[0].message.content for reply in await asyncio.gather(*asked))
        stream = await many.chat.completions.create(messages=HELLO, stream=True, **SHORT)
        assert "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        # A client that leaves early.
        stream = await many.chat.completions.create(messages=HELLO, stream=True, model="assistant", max_tokens=400)
        async for _ in stream:
            break
        await stream.close()


def embeddings():
    # The library asks for base64 and decodes it.
    reply = client.embeddings.create(model="vectors", input=["a small cat", "a little kitten", "tax law"])
    cat, kitten, law = (item.embedding for item in reply.data)
    dot = lambda a, b: sum(x * y for x, y in zip(a, b))
    assert len(cat) == 576 and abs(dot(cat, cat) - 1) < 1e-3 and dot(cat, kitten) > dot(cat, law)
    floats = client.embeddings.create(model="vectors", input="a small cat", encoding_format="float").data[0].embedding
    assert max(abs(a - b) for a, b in zip(floats, cat)) < 1e-4


class Cat(BaseModel):
    legs: Literal[2, 4]
    tame: bool


def structured():
    parsed = client.chat.completions.parse(messages=[{"role": "user", "content": "A cat, as JSON."}], response_format=Cat, model="assistant", temperature=0, max_tokens=60)
    assert isinstance(parsed.choices[0].message.parsed, Cat), parsed


def tools():
    ask = {"model": "assistant", "messages": ASK, "tools": [WEATHER, TIME], "temperature": 0, "max_tokens": 80}
    named = {"type": "function", "function": {"name": "weather"}}
    reply = client.chat.completions.create(tool_choice=named, parallel_tool_calls=False, **ask)
    choice = reply.choices[0]
    assert choice.finish_reason == "tool_calls" and len(choice.message.tool_calls) == 1, reply
    call = choice.message.tool_calls[0]
    arguments = json.loads(call.function.arguments)
    assert call.function.name == "weather" and arguments["city"] in ("Paris", "Oslo") and arguments["unit"] in "CF", call

    required = client.chat.completions.create(tool_choice="required", parallel_tool_calls=False, **ask).choices[0]
    assert required.message.tool_calls[0].function.name in ("weather", "time"), required
    with client.chat.completions.stream(tool_choice=named, parallel_tool_calls=False, **ask) as stream:
        final = stream.get_final_completion().choices[0]
    assert final.finish_reason == "tool_calls" and final.message.tool_calls[0].function.arguments == call.function.arguments, final

    # The next turn has the call and its result in it.
    answered = ASK + [choice.message, {"role": "tool", "tool_call_id": call.id, "content": "12 degrees, rain"}]
    after = client.chat.completions.create(model="assistant", messages=answered, tools=[WEATHER], tool_choice="none", temperature=0, max_tokens=12)
    assert after.choices[0].message.content and not after.choices[0].message.tool_calls, after


def raises(kind, code, call):
    try:
        call()
    except kind as error:
        assert type(error) is kind and (code is None or error.code == code), (type(error), error.code)
        return error
    raise AssertionError(f"no {kind.__name__}")


def errors():
    def chat(with_client=client, **fields):
        return lambda: with_client.chat.completions.create(**{"model": "assistant", "messages": HELLO, "max_tokens": 4, **fields})

    assert raises(openai.BadRequestError, None, chat(temperature=9)).param == "temperature"
    long = [{"role": "user", "content": "lighthouse " * 4000}]
    raises(openai.BadRequestError, "context_length_exceeded", chat(messages=long))
    raises(openai.AuthenticationError, "invalid_api_key", chat(OpenAI(api_key="ember-nobody")))
    raises(openai.PermissionDeniedError, "insufficient_permissions", chat(OpenAI(api_key=os.environ["KEY_NARROW"])))
    raises(openai.NotFoundError, "model_not_found", chat(model="nobody"))
    raises(openai.UnprocessableEntityError, "unprocessable", lambda: client.embeddings.create(model="assistant", input="x"))
    poor = raises(openai.RateLimitError, "insufficient_quota", chat(OpenAI(api_key=os.environ["KEY_POOR"], max_retries=0)))
    assert poor.type == "insufficient_quota"
    raises(openai.APITimeoutError, None, lambda: client.with_options(timeout=0.05, max_retries=0).chat.completions.create(model="assistant", messages=HELLO, max_tokens=400))


def retries_429():
    limited = OpenAI(api_key=os.environ["KEY_RPM"], max_retries=3)
    taken = 0
    for _ in range(40):
        reply = limited.embeddings.with_raw_response.create(model="vectors", input="x")
        taken = reply.retries_taken
        if taken:
            break
        assert int(reply.headers["x-ratelimit-limit-requests"]) == 20
    assert taken, "20 requests a minute were never too many"


def retries_503():
    """One answer runs, one waits, and there is no place for a third until the first ends."""
    narrow = OpenAI(api_key=os.environ["KEY_NARROW"])
    ask = {"model": "narrow", "messages": [{"role": "user", "content": "Count to one hundred."}], "temperature": 0}
    first = narrow.chat.completions.create(stream=True, max_tokens=300, extra_body={"logit_bias": {"2": -100}}, **ask)
    next(iter(first))
    second = narrow.chat.completions.create
    waiting = threading.Thread(target=lambda: second(max_tokens=1, **ask))
    waiting.start()
    time.sleep(1)  # it has the one place before others try for it
    refused = None
    for _ in range(200):
        try:
            narrow.with_options(max_retries=0).chat.completions.create(max_tokens=1, timeout=0.2, **ask)
        except openai.InternalServerError as error:
            refused = error
            break
        except openai.APITimeoutError:
            pass
    assert refused is not None and refused.status_code == 503 and int(refused.response.headers["retry-after"]) > 0, refused
    patient = narrow.with_options(max_retries=8).chat.completions.with_raw_response.create(max_tokens=1, **ask)
    assert patient.retries_taken > 0
    for _ in first:
        pass
    waiting.join()


for step in [models, chats, completions, embeddings, structured, tools, errors, retries_429, retries_503]:
    step()
    print("ok", step.__name__, flush=True)
asyncio.run(at_once())
print("ok at_once")
