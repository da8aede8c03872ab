"""Makes keys.json and tokens.json: tokens that other libraries have signed, and what their issuers publish.

Needs PyJWT, Authlib and cryptography. The private keys are not kept. The tokens are valid until the year 2100.
"""

import base64
import datetime
import json
import pathlib

import jwt
from authlib.jose import JsonWebToken
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import NameOID

ISSUER = "https://issuer.example"
UNTIL = int(datetime.datetime(2100, 1, 1, tzinfo=datetime.timezone.utc).timestamp())
PLAIN = {"iss": ISSUER, "aud": "patient-service", "sub": "ann", "exp": UNTIL, "iat": 1_700_000_000, "scope": "patients:read"}

# The claims of an access token of Keycloak 26 for a client with an audience mapper; the roles are those of its realm.
KEYCLOAK = {
    "exp": UNTIL,
    "iat": 1_700_000_000,
    "auth_time": 1_700_000_000,
    "jti": "onrtac:0f1c3b2a-6a0e-4c8e-9d3b-1f2e3d4c5b6a",
    "iss": ISSUER,
    "aud": ["patient-service", "account"],
    "sub": "f3b6a9a2-5d1f-4d53-8f0e-6a1f0c9b7d21",
    "typ": "Bearer",
    "azp": "clinic-app",
    "sid": "6b0f1d1c-2b7e-4d0e-8b38-0a53e0c6a4d7",
    "acr": "1",
    "allowed-origins": ["https://clinic.example"],
    "realm_access": {"roles": ["patients:read", "offline_access", "default-roles-clinic"]},
    "resource_access": {"account": {"roles": ["manage-account"]}, "patient-service": {"roles": ["billing:read"]}},
    "scope": "openid profile email",
    "email_verified": True,
    "preferred_username": "ann",
}


def number(value, length=None):
    return base64.urlsafe_b64encode(value.to_bytes(length or (value.bit_length() + 7) // 8, "big")).rstrip(b"=").decode()


def rsa_jwk(key, kid, alg, use, certificate=None):
    numbers = key.public_key().public_numbers()
    jwk = {"kid": kid, "kty": "RSA", "alg": alg, "use": use, "n": number(numbers.n), "e": number(numbers.e)}
    return jwk | (certificate or {})


def certificate(key):
    """x5c and x5t, as Keycloak publishes them beside each RSA key."""
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "clinic")])
    begin = datetime.datetime(2024, 1, 1)
    built = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key()).serial_number(1)
    signed = built.not_valid_before(begin).not_valid_after(begin.replace(year=2034)).sign(key, hashes.SHA256())
    der = signed.public_bytes(serialization.Encoding.DER)
    thumbprint = lambda algorithm: base64.urlsafe_b64encode(signed.fingerprint(algorithm)).rstrip(b"=").decode()
    return {"x5c": [base64.b64encode(der).decode()], "x5t": thumbprint(hashes.SHA1()), "x5t#S256": thumbprint(hashes.SHA256())}


def main():
    rs, encryption = (rsa.generate_private_key(65537, 2048) for _ in range(2))
    es = ec.generate_private_key(ec.SECP256R1())
    ed = ed25519.Ed25519PrivateKey.generate()
    point = es.public_key().public_numbers()
    x = ed.public_key().public_bytes(serialization.Encoding.Raw, serialization.PublicFormat.Raw)
    keys = [
        rsa_jwk(encryption, "encryption", "RSA-OAEP", "enc", certificate(encryption)),
        rsa_jwk(rs, "rs", "RS256", "sig", certificate(rs)),
        {"kid": "es", "kty": "EC", "crv": "P-256", "alg": "ES256", "use": "sig", "x": number(point.x, 32), "y": number(point.y, 32)},
        {"kid": "ed", "kty": "OKP", "crv": "Ed25519", "alg": "EdDSA", "use": "sig", "x": number(int.from_bytes(x, "big"), 32)},
    ]
    pem = lambda key: key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    authlib = JsonWebToken(["RS256", "ES256", "EdDSA"])
    tokens = {}
    for kid, alg, key in [("rs", "RS256", rs), ("es", "ES256", es), ("ed", "EdDSA", ed)]:
        tokens[f"PyJWT {alg}"] = jwt.encode(PLAIN, key, algorithm=alg, headers={"kid": kid})
        header = {"alg": alg, "kid": kid, "typ": "at+jwt"}
        tokens[f"Authlib {alg}"] = authlib.encode(header, PLAIN, pem(key)).decode()
    tokens["Keycloak"] = jwt.encode(KEYCLOAK, rs, algorithm="RS256", headers={"kid": "rs"})
    # What a realm issues besides; the ID token is for the application, whatever its audience says.
    identity = {name: KEYCLOAK[name] for name in KEYCLOAK if not name.endswith("_access")} | {"typ": "ID", "at_hash": "x"}
    tokens["Keycloak ID"] = jwt.encode(identity, rs, algorithm="RS256", headers={"kid": "rs"})
    refresh = KEYCLOAK | {"typ": "Refresh"}
    tokens["Keycloak refresh"] = jwt.encode(refresh, "secret of the realm, 32 bytes long", algorithm="HS256", headers={"kid": "hs"})
    tokens["PyJWT HS256 with the name of the RSA key"] = jwt.encode(PLAIN, "x" * 32, algorithm="HS256", headers={"kid": "rs"})
    tokens["PyJWT PS256"] = jwt.encode(PLAIN, rs, algorithm="PS256", headers={"kid": "rs"})
    folder = pathlib.Path(__file__).parent
    for name, content in [("keys", {"keys": keys}), ("tokens", tokens)]:
        (folder / f"{name}.json").write_text(json.dumps(content, indent=2) + "\n")


main()
