"""Calls billing-service with Python's grpcio, whose TLS is BoringSSL: a second implementation of gRPC and of mTLS.

Usage: grpc_client.py PROTOS ADDRESS NAME CA [CERTIFICATE KEY]: the directory of the .proto files, where billing-service is, the name
in its certificate, and PEM files. Prints the status code of opening an account, reading it, and reading its empty ledger.
"""

import importlib
import pathlib
import sys
import tempfile
import uuid

import grpc
from grpc_tools import protoc


def modules(protos):
    """The messages and the client that grpcio-tools generates."""
    well_known = pathlib.Path(importlib.import_module("grpc_tools").__file__).parent / "_proto"
    with tempfile.TemporaryDirectory() as out:
        arguments = ["", f"-I{protos}", f"-I{well_known}", f"--python_out={out}", f"--grpc_python_out={out}"]
        if protoc.main([*arguments, "billing_service.proto"]) != 0:
            sys.exit("the proto does not compile")
        sys.path.insert(0, out)
        return importlib.import_module("billing_service_pb2"), importlib.import_module("billing_service_pb2_grpc")


def main(protos, address, name, *files):
    messages, services = modules(protos)
    ca, certificate, key = ([pathlib.Path(file).read_bytes() for file in files] + [None, None])[:3]
    credentials = grpc.ssl_channel_credentials(ca, key, certificate)
    options = [("grpc.ssl_target_name_override", name), ("grpc.enable_retries", 0)]
    with grpc.secure_channel(address, credentials, options) as channel:
        billing = services.BillingServiceStub(channel)
        patient = str(uuid.uuid4())
        for call in (
            lambda: billing.CreateBillingAccount(
                messages.BillingRequest(patientId=patient, name="Jane", email="jane@example.org"), timeout=30
            ),
            lambda: billing.GetBillingAccount(messages.GetBillingAccountRequest(patient_id=patient), timeout=30),
            lambda: list(billing.ListTransactions(messages.ListTransactionsRequest(patient_id=patient), timeout=30)),
        ):
            try:
                call()
                print("OK")
            except grpc.RpcError as error:
                print(error.code().name, error.details())


main(*sys.argv[1:])
