"""Reads and writes the golden files of libs/codec and libs/billing-api with Python's protobuf, a second implementation of the format.

Usage: check.py PROTOS GOLDEN...: the directories of the .proto files and of the .binpb files.
"""

import importlib
import pathlib
import sys
import tempfile

from google.protobuf.json_format import MessageToDict, ParseDict
from grpc_tools import protoc

PATIENT = "0190a4c8-9a3b-7c1d-8e2f-3a4b5c6d7e8f"
EVENT = {
    "patientId": PATIENT,
    "eventId": "0190a4c8-9a3c-7000-8000-000000000001",
    "eventTime": "2024-07-03T09:46:40.123456Z",
    "registeredDate": "2024-02-29",
}
PERSON = {"name": "Zoë Müller 🩺", "email": "zoe@example.org"}
BORN = {"birthYear": 1990}
MONEY = {"amount": "1000000000000", "currency": "EUR"}

# file: (module, message, content in protobuf's JSON format)
GOLDEN = {
    "patient_created": ("patient_event", "PatientEvent", EVENT | PERSON | BORN | {"eventType": "PATIENT_CREATED", "version": "1"}),
    "patient_updated": ("patient_event", "PatientEvent", EVENT | PERSON | BORN | {"eventType": "PATIENT_UPDATED", "version": "300"}),
    "patient_deleted": ("patient_event", "PatientEvent", EVENT | {"eventType": "PATIENT_DELETED", "version": "301"}),
    "original_event": ("patient_event", "PatientEvent", {"patientId": PATIENT, "eventType": "PATIENT_CREATED"} | PERSON),
    "billing_request": ("billing_service", "BillingRequest", {"patientId": PATIENT} | PERSON),
    "billing_response": ("billing_service", "BillingResponse", {"accountId": "account-1", "status": "ACTIVE"}),
    "record_transaction_request": (
        "billing_service",
        "RecordTransactionRequest",
        {"patientId": PATIENT, "transactionId": "visit-1", "type": "REFUND", "amount": MONEY},
    ),
    "transaction": (
        "billing_service",
        "Transaction",
        {
            "transactionId": "visit-1",
            "type": "REFUND",
            "amount": MONEY,
            "recordedAt": "2024-07-03T09:46:40.000000005Z",
            "position": "7",
        },
    ),
}


def main(protos, *golden):
    well_known = pathlib.Path(importlib.import_module("grpc_tools").__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        names = ["patient_event", "billing_service"]
        arguments = ["", f"-I{protos}", f"-I{well_known}", f"--python_out={out}", *(f"{name}.proto" for name in names)]
        if protoc.main(arguments) != 0:
            sys.exit("the protos do not compile")
        sys.path.insert(0, out)
        modules = {name: importlib.import_module(f"{name}_pb2") for name in names}

    files = {path.stem: path for directory in golden for path in pathlib.Path(directory).glob("*.binpb")}
    failures = [f"{name}: either the file or the entry in GOLDEN is missing" for name in files.keys() ^ GOLDEN.keys()]
    for name in sorted(files.keys() & GOLDEN.keys()):
        module, message, content = GOLDEN[name]
        kind = getattr(modules[module], message)
        written = files[name].read_bytes()
        read = MessageToDict(kind.FromString(written))
        if read != content:
            failures.append(f"{name}: expected {content}, read {read}")
        if ParseDict(content, kind()).SerializeToString(deterministic=True) != written:
            failures.append(f"{name}: Python writes different bytes")
    if failures:
        sys.exit("\n".join(failures))
    print(f"wire: {len(files)} golden messages read and written by Python's protobuf")


main(*sys.argv[1:])
