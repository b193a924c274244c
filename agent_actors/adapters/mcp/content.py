"""What a call gave, as text for the model: a server may answer with pictures and sound too."""

from collections.abc import Iterator

import msgspec
from mcp.types import (
    AudioContent,
    BlobResourceContents,
    CallToolResult,
    ContentBlock,
    EmbeddedResource,
    ImageContent,
    ResourceLink,
    TextContent,
    TextResourceContents,
)

BASE64_CHARS = 4
BASE64_BYTES = 3


def text_of(result: CallToolResult) -> str:
    """Return the result as text; what is no text is described by its type and size.

    The structured content is for programs, and is repeated in the text by servers that follow
    the specification, so it stands in only where there is no text.
    """
    texts = [_text(block) for block in result.content]
    has_text = any(_is_text(block) for block in result.content)
    if result.structured_content is not None and not has_text:
        texts.append(msgspec.json.encode(result.structured_content).decode())
    return "\n".join(texts)


def summary_of(result: CallToolResult) -> str:
    """Return what kinds of content there are, for the record."""
    return ", ".join(_kinds(result)) or "nothing"


def _kinds(result: CallToolResult) -> Iterator[str]:
    characters = sum(len(_text(block)) for block in result.content if _is_text(block))
    if characters:
        yield f"{characters} characters"
    elif result.structured_content is not None:
        yield "structured content"
    yield from (_text(block)[1:-1] for block in result.content if not _is_text(block))


def _is_text(block: ContentBlock) -> bool:
    match block:
        case TextContent() | EmbeddedResource(resource=TextResourceContents()):
            return True
        case _:
            return False


def _text(block: ContentBlock) -> str:
    match block:
        case TextContent():
            return block.text
        case ImageContent() | AudioContent():
            return f"[{block.type} of type {block.mime_type}, {_size(block.data)} bytes]"
        case ResourceLink():
            return f"[link to the resource {block.uri}, type {block.mime_type or 'unknown'}]"
        case EmbeddedResource():
            return _resource(block.resource)


def _resource(resource: TextResourceContents | BlobResourceContents) -> str:
    if isinstance(resource, TextResourceContents):
        return resource.text
    kind = resource.mime_type or "unknown"
    return f"[resource {resource.uri} of type {kind}, {_size(resource.blob)} bytes]"


def _size(base64: str) -> int:
    return len(base64.rstrip("=")) * BASE64_BYTES // BASE64_CHARS
