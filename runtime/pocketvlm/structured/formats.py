"""`format` of JSON Schema -> what the grammar's compiler can hold to: a format of its own, or a pattern. Pure."""

from __future__ import annotations

# The compiler's own. It takes the others for errors; in JSON Schema they are annotations.
COMPILED = frozenset({"email", "hostname", "ipv4", "ipv6", "uri"})
# Formats of numbers, for which types and bounds speak.
OF_NUMBERS = frozenset("int8 int16 int32 int64 uint8 uint16 uint32 uint64 uint int float double decimal".split())

_YEAR = "(?:[1-9][0-9]{3}|0[1-9][0-9]{2}|00[1-9][0-9]|000[1-9])"
_LEAP_YEAR = "(?:[0-9]{2}(?:0[48]|[2468][048]|[13579][26])|(?:0[48]|[2468][048]|[13579][26])00)"
_DATE = (
    f"(?:{_YEAR}-(?:(?:0[13578]|1[02])-(?:0[1-9]|[12][0-9]|3[01])|(?:0[469]|11)-(?:0[1-9]|[12][0-9]|30)"
    f"|02-(?:0[1-9]|1[0-9]|2[0-8]))|{_LEAP_YEAR}-02-29)"
)
_TIME = r"(?:[01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](?:\.[0-9]{1,6})?(?:Z|[+-](?:[01][0-9]|2[0-3]):[0-5][0-9])"
_N = "[0-9]{1,6}"
_HOURS = f"T(?:{_N}H(?:{_N}M(?:{_N}S)?)?|{_N}M(?:{_N}S)?|{_N}S)"
_DAYS = f"(?:{_N}Y(?:{_N}M(?:{_N}D)?)?|{_N}M(?:{_N}D)?|{_N}D)"
_UUID = "^[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-%s[0-9a-fA-F]{3}-%s[0-9a-fA-F]{3}-[0-9a-fA-F]{12}$"
_BASE64 = "^(?:[A-Za-z0-9+/]{4})*(?:[A-Za-z0-9+/][AQgw]==|[A-Za-z0-9+/]{2}[AEIMQUYcgkosw048]=)?$"
PATTERNS = {
    # Narrower than the compiler's, which have a 29th of February in every year, a 60th second, and endless digits.
    "date": f"^{_DATE}$",
    "time": f"^{_TIME}$",
    "date-time": f"^{_DATE}T{_TIME}$",
    "duration": f"^P(?:{_DAYS}(?:{_HOURS})?|{_HOURS}|{_N}W)$",
    "uuid": _UUID % ("[0-9a-fA-F]", "[0-9a-fA-F]"),
    **{f"uuid{version}": _UUID % (version, "[89abAB]") for version in range(1, 9)},  # of pydantic
    **dict.fromkeys(("base64", "byte"), _BASE64),  # of pydantic and OpenAPI
}
