"""LangChain's library for OpenAI, unmodified: messages, streams, batches, structured output, tools, embeddings.

From the environment: OPENAI_BASE_URL, OPENAI_API_KEY and SSL_CERT_FILE.
"""

from typing import Literal

from langchain_core.tools import tool
from langchain_openai import ChatOpenAI, OpenAI, OpenAIEmbeddings
from pydantic import BaseModel


class Cat(BaseModel):
    """A cat."""

    legs: Literal[2, 4]
    tame: bool


@tool
def weather(city: Literal["Paris", "Oslo"]) -> str:
    """The weather in a city now."""
    return f"rain in {city}"


model = ChatOpenAI(model="assistant", temperature=0, max_tokens=24)


def chats():
    reply = model.invoke([("system", "Be brief."), ("human", "Say hello.")])
    assert reply.content and reply.usage_metadata["total_tokens"] > 0, reply
    assert "".join(chunk.content for chunk in model.stream([("system", "Be brief."), ("human", "Say hello.")])) == reply.content
    assert all(reply.content for reply in model.batch(["Say one.", "Say two."]))
    assert OpenAI(model="assistant", temperature=0, max_tokens=8).invoke("The capital of France is")


def structured():
    cat = ChatOpenAI(model="assistant", temperature=0, max_tokens=60).with_structured_output(Cat, method="json_schema").invoke("A cat, as JSON.")
    assert isinstance(cat, Cat), cat
    called = ChatOpenAI(model="assistant", temperature=0, max_tokens=80).with_structured_output(Cat, method="function_calling").invoke("A cat.")
    assert isinstance(called, Cat), called


def tools():
    bound = ChatOpenAI(model="assistant", temperature=0, max_tokens=80).bind_tools([weather], tool_choice="weather", parallel_tool_calls=False)
    asked = [("human", "What is the weather in Oslo?")]
    reply = bound.invoke(asked)
    assert [call["name"] for call in reply.tool_calls] == ["weather"] and reply.tool_calls[0]["args"]["city"] in ("Paris", "Oslo"), reply
    result = weather.invoke(reply.tool_calls[0])
    answer = model.invoke(asked + [reply, result])
    assert answer.content, answer
    merged = None
    for chunk in bound.stream(asked):
        merged = chunk if merged is None else merged + chunk
    assert merged.tool_calls[0]["args"] == reply.tool_calls[0]["args"], merged


def embeddings():
    # The check counts tokens with OpenAI's own vocabularies, which it would fetch.
    vectors = OpenAIEmbeddings(model="vectors", check_embedding_ctx_length=False)
    assert len(vectors.embed_query("a cat")) == 576
    assert [len(vector) for vector in vectors.embed_documents(["a cat", "a law"])] == [576, 576]


for step in [chats, structured, tools, embeddings]:
    step()
    print("ok", step.__name__, flush=True)
