// Shows the service's OpenAPI document. Its URL is relative, so that it also works below a gateway's path.
"use strict";

window.addEventListener("load", () => {
  SwaggerUIBundle({
    url: "openapi.json",
    dom_id: "#swagger-ui",
    deepLinking: true,
    tryItOutEnabled: true,
    displayRequestDuration: true,
    // The validator's badge would be fetched from another host.
    validatorUrl: null,
  });
});
