"""Values that JSON Schema cannot describe: schemathesis draws them from here, and checks everything else by itself."""

import datetime

import schemathesis
from hypothesis import strategies as st

# A date of birth or of registration must not lie in the future; `format: date` alone says nothing of it.
past = st.dates(min_value=datetime.date(1, 1, 1), max_value=datetime.date.today() - datetime.timedelta(days=1))
schemathesis.openapi.format("date", past.map(str))

# Only codes that ISO 4217 knows are currencies.
schemathesis.openapi.format("iso-4217", st.sampled_from(["EUR", "USD", "GBP", "JPY", "CHF", "KWD"]))

# A cursor is opaque: those that the service gave out are followed by the stateful phase. An empty one is none.
schemathesis.openapi.format("cursor", st.just(""))

# Entity tags are quoted (RFC 9110); a wrong one is refused, and those of other versions are 412.
schemathesis.openapi.format("entity-tag", st.sampled_from(['"1"', '"2"', 'W/"1"', "*", '"1", "7"']))

# What email addresses the service takes is its own choice of RFC 5321; the schema's format takes more.
label = st.from_regex(r"[a-z][a-z0-9]{0,9}", fullmatch=True)
schemathesis.openapi.format("email", st.builds("{}@{}.example".format, label, label))


# A page must not begin after the first 100000 patients, which is a matter of two parameters at once.
@schemathesis.hook
def filter_query(context, query):
    query = query or {}
    try:
        return (int(query.get("page", 1)) - 1) * int(query.get("size", 10)) <= 100_000
    except (TypeError, ValueError):
        return True


# JSON Schema counts 3681.0 among the integers; an amount of money must be written as one.
@schemathesis.hook
def filter_body(context, body):
    return not isinstance(body, dict) or not isinstance(body.get("amount"), float)
