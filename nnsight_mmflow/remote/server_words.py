"""What NDIF's own sentences mean, and what to do: how it refuses a request, and how a job ends that is not at fault.

They are ndif 0.1.2's; one that is not known here is passed on as it is.
"""

from __future__ import annotations

import re

AGAIN = "Run it again in a few minutes: with folder= it goes on where it was."
NEW_KEY = "`nnsight login`, or set NDIF_API_KEY."
TRACEBACK = "Traceback (most recent call last)"
PART = 1 << 20  # bytes: above, the server puts what came into a file, which nnsight's .save breaks there

UNKNOWN = {"name": "the model", **dict.fromkeys(("near", "versions", "sent", "what", "why"), "")}

# A sentence (or what all of a kind share), and what it means; what the pattern names stands in the text.
WORDS: tuple[tuple[str, str], ...] = (
    (r"Missing or invalid API key", f"the server refuses the API key: none reached it. {NEW_KEY}"),
    (
        r"Invalid API key format",
        "the server refuses the API key: it is malformed. NDIF's have the form xxxxxxxx-xxxx-xxxx-xxxx-xxxxxxxxxxxx:"
        f" copy it again from https://login.ndif.us. {NEW_KEY}",
    ),
    (
        r"Invalid API key\.",
        "the server refuses the API key: it does not know it. Is it of another server (NDIF_HOST), or withdrawn? Get"
        f" one at https://login.ndif.us: {NEW_KEY}",
    ),
    (r"\b401\b|Unauthorized|API key", f"the server refuses the API key: {NEW_KEY}"),
    (r"Auth backend unavailable", f"the server cannot look up API keys just now. {AGAIN}"),
    (r"backend is reconnecting", f"the server has lost its compute nodes and is reconnecting to them. {AGAIN}"),
    (r"Could not retrieve|Timed out waiting for cluster", f"the server cannot say just now what it runs. {AGAIN}"),
    (
        r"parsing the body(?: \((?P<sent>\d+) bytes were sent\))?|Part exceeded maximum size",
        "the server could not take the request{sent}: servers with anyio >= 4.15 refuse more than 1048576 bytes in"
        " one part. Send less: a smaller picture or one of fewer tiles, fewer prompts in a batch, fewer cells in a"
        " request (flow: chunks_per_request=8).",
    ),
    (
        r"Could not deploy this model\.\s*(?P<why>.*)",
        "{name} is not deployed on the server, and it could not deploy it: {why} Is the name right, the model public,"
        " and small enough for that server?{near}",
    ),
    (r"(?i)no deployment|not deployed|not scheduled", "{name} is not deployed on the server.{near}"),
    (r"evicted", f"the server took the model away while the job ran, to make room for another. {AGAIN}"),
    (
        r"Error (?P<what>provisioning model|starting model|submitting request)|Critical server error",
        f"the server failed{{what}}: it is not your code. {AGAIN} If it stays so, tell NDIF, or take another model."
        "{near}",
    ),
    (r"cancelled or preempted by the server|cancelled by operator", f"the server cancelled the job. {AGAIN}"),
    (
        r"payload could not be read \((?P<why>.*?)\)\. It",
        "the server could not read what was sent ({why}): it was damaged on its way, or another nnsight runs there."
        "{versions} Run it again; if it stays so, install the server's nnsight here.",
    ),
    (
        r"doesn't match the one your\s+code was traced against: it has no module at '(?P<what>[^']*)'",
        "the server builds {name} otherwise than here: it has no module{what}. Nearly always its transformers is"
        " another version.{versions} Install that version here: nnsight.ndif.compare() lists them.",
    ),
    (
        r"is below the minimum|version was not provided|Malformed nnsight version",
        "the server asks for a newer nnsight or Python: {text}",
    ),
    (r"link has expired", f"the job's result was kept for an hour, and its link has expired: send it again. {AGAIN}"),
    (r"Internal server error", f"the server failed inside: it is not your code. {AGAIN}"),
)


def meaning(text: str, **known: str) -> str | None:
    """What a server's sentence means; None where it is not known, as of an error in one's own code.

    Args:
        text: the sentence.
        known: what the words may ask for: name (of the model), near (others that are deployed), versions (that differ).

    Example:
        >>> meaning("Replica was evicted while processing your request.")[:50]
        'the server took the model away while the job ran, '
    """
    if TRACEBACK in text:
        return None
    for pattern, words in WORDS:
        match = re.search(pattern, text, re.DOTALL)
        if match:
            named = {name: value or "" for name, value in match.groupdict().items()}
            if named.get("sent"):
                named["sent"] = f" ({named['sent']} bytes)"
            if named.get("what"):
                named["what"] = f" {named['what']}"
            return words.format_map({**UNKNOWN, "text": text, **known, **named})
    return None
