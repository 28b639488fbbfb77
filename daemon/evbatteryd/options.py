"""What parts are built with, from the settings: for the daemon, and for whoever tries the same beforehand."""

from __future__ import annotations

from evbatteryd.settings import MqttSettings, SmartcarSettings
from evbatteryd.sinks.connection import MqttOptions
from evbatteryd.sources.smartcar import SmartcarOptions


def smartcar_options(name: str, settings: SmartcarSettings) -> SmartcarOptions:
    return SmartcarOptions(
        application=name,
        client_id=settings.client_id,
        client_secret=settings.client_secret.reveal(),
        iam_origin=settings.origins.iam,
        vehicle_origin=settings.origins.vehicle,
        management_origin=settings.origins.management,
        mode=settings.mode,
    )


def mqtt_options(settings: MqttSettings) -> MqttOptions:
    return MqttOptions(
        host=settings.url.host,
        port=settings.url.port,
        tls=settings.url.tls,
        ca_file=settings.ca_file,
        client_certificate=settings.client_certificate,
        client_key=settings.client_key,
        tls_server_name=settings.tls_server_name,
        websocket_path=settings.url.websocket_path,
        username=settings.username,
        password=settings.password.reveal() if settings.password is not None else None,
        client_id=settings.client_id,
        base_topic=settings.base_topic,
        discovery=settings.discovery,
        discovery_prefix=settings.discovery_prefix,
        protocol=settings.protocol,
        keepalive=settings.keepalive.total_seconds(),
        session_expiry=int(settings.session_expiry.total_seconds()),
        json_state=settings.json_state,
        scalars=settings.scalars,
    )
