"""Says in one line why a transfer failed, from what obstore raised; nothing of it is quoted but codes and kinds.

Messages of obstore hold the whole answer of a server, which may have keys, signatures and query strings in it.
"""

import re
from dataclasses import dataclass

KINDS = {
    "Timeout": "no answer in time",
    "Connect": "no connection to the server",
    "Interrupted": "a connection that ended early",
    "Request": "a connection that ended early",
    "Decode": "an answer that cannot be read",
    "Unknown": "an answer that cannot be read",
}
"""obstore's kinds of errors of a connection, in words."""

WORTH_ANOTHER_TRY = (408, 425, 429)
"""Status codes under 500 that may pass by themselves."""

_STATUS = re.compile(r"status code: (\d{3})")
_CODE = re.compile(r"<Code>([A-Za-z]{1,60})</Code>")
_HTTP_KIND = re.compile(r"HttpError \{\s+kind: (\w+),")
_MISSING = re.compile(r"source: (Missing\w+),")


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What went wrong: in words, and whether it may pass. conditional: the server cannot write "only if absent"."""

    text: str
    passes: bool
    conditional: bool = False


def fault_of(error: BaseException) -> Fault:
    """What an error of obstore means."""
    message = str(error)
    if "BadScheme" in message:
        return Fault(text="an http:// address, which needs AWS_ALLOW_HTTP=true in the environment", passes=False)
    if (missing := _MISSING.search(message)) is not None and "MissingContentLength" not in message:
        return Fault(text=f"{missing[1]}: no credentials or account in the environment", passes=False)
    if "BareRedirect" in message:
        return Fault(text="a redirection, which means another region: set AWS_REGION", passes=False)
    if (status := _STATUS.search(message)) is not None:
        number, code = int(status[1]), _CODE.search(message)
        text = f"status {number}" + (f" {code[1]}" if code else "")
        passes = (number >= 500 and number != 501) or number in WORTH_ANOTHER_TRY
        return Fault(text=text, passes=passes, conditional=number == 501)
    kind = _HTTP_KIND.search(message)
    if kind is not None:
        return Fault(text=KINDS.get(kind[1], "a broken connection"), passes=True)
    name = type(error).__name__
    known = {"PermissionDeniedError": "no permission", "UnauthenticatedError": "no valid credentials"}
    return Fault(text=known.get(name, f"{name} of the client"), passes=name == "GenericError")


def no_bucket(error: BaseException) -> bool:
    """Whether an object was not found because its whole bucket is missing."""
    code = _CODE.search(str(error))
    return code is not None and code[1] == "NoSuchBucket"
