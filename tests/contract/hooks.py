"""Strategies for values that JSON Schema cannot describe; schemathesis generates all others from the document."""

import datetime

import schemathesis
from hypothesis import strategies as st

# A date of birth or of registration must not be in the future, which `format: date` does not say.
past = st.dates(min_value=datetime.date(1, 1, 1), max_value=datetime.date.today() - datetime.timedelta(days=1))
schemathesis.openapi.format("date", past.map(str))

# Currencies are codes of ISO 4217.
schemathesis.openapi.format("iso-4217", st.sampled_from(["EUR", "USD", "GBP", "JPY", "CHF", "KWD"]))

# Cursors are opaque. The stateful phase uses those that the service returned; an empty one counts as no cursor.
schemathesis.openapi.format("cursor", st.just(""))

# Entity tags are quoted (RFC 9110); a malformed one is 400, one of another version is 412.
schemathesis.openapi.format("entity-tag", st.sampled_from(['"1"', '"2"', 'W/"1"', "*", '"1", "7"']))

# The service accepts a subset of the addresses of RFC 5321; the schema's format accepts more.
label = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)
schemathesis.openapi.format("email", st.builds("{}@{}.example".format, label, label))


# A page must not start after the first 100000 patients, which depends on two parameters.
@schemathesis.hook
def filter_query(context, query):
    query = query or {}
    try:
        return (int(query.get("page", 1)) - 1) * int(query.get("size", 10)) <= 100_000
    except (TypeError, ValueError):
        return True


# 3681.0 is an integer in JSON Schema; the service accepts 3681 alone.
@schemathesis.hook
def filter_body(context, body):
    return not isinstance(body, dict) or not isinstance(body.get("amount"), float)
